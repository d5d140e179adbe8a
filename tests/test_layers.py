import pytest
import torch
from torch.func import functional_call, vmap

from vqbank.regressors import layers
from vqbank.regressors.layers import GruLayer, dropout, linear, start_uniform


def pair(width_in=7, width=5):
    ours = GruLayer(width_in, width, generator=torch.Generator().manual_seed(0))
    theirs = torch.nn.GRU(width_in, width, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("scale", [1, 1e4])  # up to where 1 + exp(-x) is infinite
@pytest.mark.parametrize("at_once", [1, 7, 1000])  # steps
@pytest.mark.parametrize("steps", [1, 2, 40])
def test_the_gru_is_that_of_pytorch_forward_and_backward(steps, at_once, scale, monkeypatch):
    monkeypatch.setattr(layers, "FEWEST_STEPS", at_once)
    monkeypatch.setattr(layers, "CACHED", 0)
    ours, theirs = pair()
    rows = torch.randn(3, steps, 7, generator=torch.Generator().manual_seed(1)) * scale
    rows.requires_grad_()
    weights = torch.randn(3, steps, 5, generator=torch.Generator().manual_seed(2))
    results = []
    for layer in (ours, theirs):
        out = layer(rows)
        states = out if layer is ours else out[0]
        results.append(
            [states, *torch.autograd.grad((states * weights).sum(), [rows, *layer.parameters()])]
        )

    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_steps_by_pytorch_as_on_a_gpu_come_to_the_same(monkeypatch):
    monkeypatch.setattr(layers, "CACHED", 0)
    gru, _ = pair()
    rows = torch.randn(3, 9, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    results = []
    for arrays in (layers._arrays, lambda *tensors: (torch, tensors)):
        monkeypatch.setattr(layers, "_arrays", arrays)
        states = gru(rows)
        gradients = torch.autograd.grad(states.square().sum(), [rows, *gru.parameters()])
        results.append([states, *gradients])

    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def gru_and_layer(outputs, *, bias=True, seed=0):
    source = torch.Generator().manual_seed(seed)
    layer = torch.nn.utils.skip_init(torch.nn.Linear, 11, outputs, bias=bias)
    start_uniform(layer, 0.3, generator=source)
    return GruLayer(outputs, 5, generator=source), layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [7, 30])  # of the layer: fewer than the gates have, and more
def test_a_layer_before_the_gru_can_be_taken_into_it(outputs, bias):
    gru, layer = gru_and_layer(outputs, bias=bias)
    rows = torch.randn(3, 9, 11, generator=torch.Generator().manual_seed(1)).requires_grad_()
    parameters = [rows, *layer.parameters(), *gru.parameters()]
    results = [
        [states, *torch.autograd.grad(states.square().sum(), parameters)]
        for states in (gru(layer(rows)), gru.behind(layer, rows))
    ]

    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arrays", [layers._arrays, lambda *tensors: (torch, tensors)])
@pytest.mark.parametrize("at_once", [2, 1000])  # steps
def test_a_stack_of_grus_is_each_of_them(at_once, arrays, monkeypatch):
    monkeypatch.setattr(layers, "FEWEST_STEPS", at_once)
    monkeypatch.setattr(layers, "CACHED", 0)
    monkeypatch.setattr(layers, "_arrays", arrays)
    members = [GruLayer(7, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    rows = torch.randn(3, 2, 9, 7, generator=torch.Generator().manual_seed(5)).requires_grad_()
    stacked = {
        name: torch.stack(
            [dict(one.named_parameters())[name].detach() for one in members]
        ).requires_grad_()
        for name, _ in members[0].named_parameters()
    }
    together = vmap(lambda own, its: functional_call(members[0], own, (its,)))(stacked, rows)
    together.square().sum().backward()

    for number, one in enumerate(members):
        own = rows[number].detach().requires_grad_()
        alone = one(own)
        alone.square().sum().backward()
        torch.testing.assert_close(together[number], alone)
        torch.testing.assert_close(rows.grad[number], own.grad)
        for name, value in one.named_parameters():
            torch.testing.assert_close(stacked[name].grad[number], value.grad)


def test_later_rows_change_no_earlier_state():
    ours, _ = pair()
    rows = torch.randn(1, 9, 7)
    other = rows.clone()
    other[:, 5:] = 1e3

    assert torch.equal(ours(rows)[:, :5], ours(other)[:, :5])


def test_layers_draw_from_their_generator_alone():
    before = torch.get_rng_state()
    one, two = (linear(3, 2, generator=torch.Generator().manual_seed(4)) for _ in range(2))

    assert torch.equal(one.weight, two.weight)
    assert torch.equal(before, torch.get_rng_state())
    assert one.weight.abs().max() <= 3**-0.5


def test_dropout_drops_its_part_and_keeps_the_mean():
    values = torch.ones(100, 50, 20)
    dropped = dropout(values, 0.3, torch.tensor(7))

    assert (dropped == 0).float().mean() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean() == pytest.approx(1, abs=0.01)
    for axis in range(3):  # no pattern along any axis
        part = (dropped == 0).float().mean(dim=[other for other in range(3) if other != axis])
        assert part.std() < 0.05


def test_dropout_depends_on_noise_and_place_and_not_on_padding():
    values = torch.ones(4, 6, 8)
    first = dropout(values, 0.5, torch.tensor(1))

    assert torch.equal(first, dropout(values, 0.5, torch.tensor(1)))
    assert not torch.equal(first, dropout(values, 0.5, torch.tensor(2)))
    assert torch.equal(first, dropout(torch.ones(5, 9, 8), 0.5, torch.tensor(1))[:4, :6])
    noise = torch.tensor([3, 1])
    stacked = vmap(lambda own, number: dropout(own, 0.5, number))(values.expand(2, 4, 6, 8), noise)
    assert torch.equal(stacked[1], first)
