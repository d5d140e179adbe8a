"""Q-CLIP's network on small towers; what official code computes is the fixture `qclip_head`."""

import pytest
import torch

from vqbank.regressors.scma import QClipNetwork, Scma
from vqbank.regressors.tail import ImageTail, TextTail
from vqbank.store.errors import HeadError

TOWER = {"width": 16, "heads": 2, "hidden": 32, "activation": "gelu", "embedding": 16}
TOKENS = torch.tensor([[7, 1, 1, 1, 2, 8, 0, 0], [7, 1, 1, 1, 3, 4, 8, 0]])


def filled(tower):
    draw = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(value.shape, generator=draw) * 0.3
        for name, value in tower.state_dict().items()
    }
    tower.load_state_dict(state)
    return tower.eval().requires_grad_(False)


def towers(**text):
    image = ImageTail(**TOWER, cut=1, layers=4, places=5, pool_heads=2)
    return filled(image), filled(
        TextTail(**{**TOWER, "layers": 4, "context": 8, "vocabulary": 9, **text})
    )


@pytest.fixture
def network():
    return network_of(*towers()).eval()


@pytest.fixture
def state():
    """Three videos of two frames."""
    return torch.randn(3, 2, 5, 16, generator=torch.Generator().manual_seed(1))


def network_of(image, text, tokens=TOKENS, **given):
    usual = {"adapted": 3, "inner": 4, "wiring": "sequential"}
    draw = torch.Generator().manual_seed(0)
    return QClipNetwork(image, text, tokens, **{**usual, **given}, generator=draw)


def silenced(network):
    with torch.no_grad():
        for name, value in network.scma.named_parameters():
            if name.endswith("adapter_weight"):
                value.zero_()
    return network


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({"wiring": "parallel", "inner": 8}, 139_555),  # "0.14 M" of the paper
        ({"wiring": "parallel", "inner": 4}, 82_027),
        ({"wiring": "parallel", "inner": 16}, 254_899),
        ({"wiring": "parallel", "inner": 128}, 1_910_035),
        ({"wiring": "sequential", "inner": 128}, 1_907_977),  # the official code
    ],
)
def test_as_many_numbers_are_learnt_as_the_paper_and_the_code_say(given, count):
    with torch.device("meta"):
        learnt = Scma(
            width=1024, embedding=1024, blocks=range(18, 24), prompts=5,
            context=torch.empty(1, 3, 1024), sharing="layers", towers="both",
            generator=torch.Generator(), **given,
        )  # fmt: skip
    assert sum(value.numel() for value in learnt.parameters()) == count


def test_without_what_adapters_add_the_towers_are_the_frozen_ones(network, state):
    silenced(network)
    image, text = towers()
    *_, last = network.states(state[0])
    assert torch.equal(network.frame(last), image(state[0]))
    whole = text(text.embed(TOKENS), TOKENS.argmax(dim=1))
    unit = torch.nn.functional.normalize(whole, dim=1)
    # The short prompts are summed in another order.
    torch.testing.assert_close(network.levels(), unit, atol=1e-6, rtol=0)


def test_every_adapter_says_something_in_its_place(network, state):
    plain = [value.clone() for value in network.states(state[0])]
    assert len(plain) == 3
    levels = network.levels()
    for place, number in enumerate(("1", "2", "3")):
        norm = network.scma.encoder_adapters[number]["ln"]
        with torch.no_grad():
            norm.bias.add_(1)
        changed = list(network.states(state[0]))
        assert all(torch.equal(*pair) for pair in zip(plain[:place], changed[:place], strict=True))
        assert not torch.equal(plain[place], changed[place])
        assert not torch.equal(levels, network.levels())
        with torch.no_grad():
            norm.bias.sub_(1)


def test_a_score_is_a_weighted_sum_of_similarities_of_the_mean_frame(network, state):
    scores = network(state)
    *_, last = network.states(state[1])
    video = network.video(network.frame(last)[None])
    expected = (video @ network.levels().T @ network.scma.score_proj).squeeze()
    torch.testing.assert_close(scores[1], expected)
    assert scores.shape == (3,)


def test_a_score_does_not_depend_on_company_nor_on_the_order_of_frames(network, state):
    scores = network(state)
    torch.testing.assert_close(network(state[1:2])[0], scores[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(network(state.flip(1)), scores, atol=1e-6, rtol=0)


def test_all_that_is_learnt_gets_a_gradient_and_the_towers_get_none(network, state):
    network(state).square().sum().backward()
    for name, value in network.scma.named_parameters():
        assert value.grad is not None, name
        assert value.grad.abs().max() > 0, name
    assert all(value.grad is None for value in network.image.parameters())
    assert all(value.grad is None for value in network.text.parameters())


def test_learning_starts_from_the_words_that_are_replaced(network):
    embedded = network.text.embed(TOKENS)
    assert torch.equal(network.scma.context_tokens[0], embedded[0, 1:4])
    assert torch.equal(network.scma.context_tokens[0], embedded[1, 1:4])


def test_an_official_checkpoint_is_taken_without_what_it_never_runs(network):
    draw = torch.Generator().manual_seed(3)
    official = {
        f"module.{key}": torch.randn(value.shape, generator=draw)
        for key, value in network.scma.state_dict().items()
    }
    idle = {
        "module.encoder_adapters.0.ln.bias": torch.zeros(16),
        "module.clip_model.logit_scale": torch.zeros(()),
    }
    network.scma.load_official({**official, **idle})
    for key, value in network.scma.state_dict().items():
        assert torch.equal(value, official[f"module.{key}"])


def test_a_checkpoint_of_something_else_is_refused(network):
    state = dict(network.scma.state_dict())
    with pytest.raises(HeadError, match=r"score_proj has shape \(5, 1\); here it is \(2, 1\)"):
        network.scma.load_official({**state, "score_proj": torch.zeros(5, 1)})
    del state["shared_core.0.bias"]
    with pytest.raises(HeadError, match=r"have no shared_core\.0\.bias"):
        network.scma.load_official(state)


@pytest.mark.parametrize("other", [{"width": 32}, {"embedding": 8}, {"layers": 3}])
def test_towers_that_cannot_share_adapters_are_refused(other):
    with pytest.raises(HeadError, match="towers of one width, one embedding and as many blocks"):
        network_of(*towers(**other))
