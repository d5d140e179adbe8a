"""What DVLTA-VQA's head is made of: temporally adaptive convolution, and attention (CBAM)."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, conv3d, relu

from vqbank.pipelines.golden.fixture import Check, Fixture, array
from vqbank.regressors.cbam import Cbam
from vqbank.regressors.tadaconv import Aggregation, TadaConv

Part = TypeVar("Part", bound=nn.Module)
_NORMS = ("a_bn", "b_rf.bn", "b_bn", "b_avgpool_bn", "c_bn")


def play_tadaconv2d(fixture: Fixture) -> Iterator[Check]:
    """Routes and convolutions of three forms in both modes, and a block with aggregation."""
    relative = fixture.recipe["tolerance"]["rel_to_max"]
    state = fixture.state_dict()
    clips = _shifted(fixture, "x")
    for case, stride in (("cin", 2), ("bias", 1), ("cout", 1)):
        own = _under(state, case)
        convolution = _convolution(own, "rf", own["conv.weight"], stride)
        for mode in ("eval", "train"):
            convolution.train(mode == "train")
            route, found = _routed(convolution, clips)
            if case == "cout":  # a form that we have not: routes multiply what comes out
                found = route * convolution.conv(clips)
            elif case == "bias":
                found = found + own["conv.bias"].view(1, -1, 1, 1, 1)
            yield fixture.close(f"{case}_alpha_{mode}", route, relative)
            yield fixture.close(f"{case}_y_{mode}", found, relative)
        mean, variance, count = convolution.rf.bn.buffers()
        yield fixture.close(f"{case}_run_mean", mean, relative)
        yield fixture.close(f"{case}_run_var", variance, relative)
        yield fixture.equal(f"{case}_nbt", count)
    yield from _play_block(fixture, _under(state, "block"), relative)


def _play_block(fixture: Fixture, state: Mapping[str, Tensor], relative: float) -> Iterator[Check]:
    """A bottleneck whose middle is ours; its outer convolutions are 1x1x1."""
    clips = _shifted(fixture, "block_x")
    real = _all_real(clips)
    middle = _convolution(state, "b_rf", state["b.weight"], stride=2)
    aggregation = Aggregation(len(state["b_bn.weight"]))
    aggregation.bn, aggregation.avgpool_bn = (
        _norm(state, name) for name in ("b_bn", "b_avgpool_bn")
    )
    before, after = _norm(state, "a_bn"), _norm(state, "c_bn")
    parts = nn.ModuleList([middle, aggregation, before, after])
    for mode in ("eval", "train"):
        parts.train(mode == "train")
        came = relu(before(conv3d(clips, state["a.weight"])))
        convolved = middle(came, real)
        together = aggregation(convolved, real)
        out = after(conv3d(relu(together), state["c.weight"]))
        yield fixture.close(f"block_{mode}", out, relative)
        if mode == "eval":
            pooled = avg_pool3d(convolved, (3, 1, 1), 1, (1, 0, 0))
            yield fixture.close("block_eval_b_in", came, relative)
            yield fixture.close("block_eval_b", convolved, relative)
            yield fixture.close("block_eval_pool", pooled, relative)
            yield fixture.close("block_eval_agg", together, relative)
    found = (before, middle.rf.bn, aggregation.bn, aggregation.avgpool_bn, after)
    for name, norm in zip(_NORMS, found, strict=True):
        mean, variance, _ = norm.buffers()
        yield fixture.close(f"block_rm.{name}", mean, relative)
        yield fixture.close(f"block_rv.{name}", variance, relative)


def play_cbam(fixture: Fixture) -> Iterator[Check]:
    """Both maps, one after the other as officially, and of the same feature as in DVLTA-VQA."""
    relative = fixture.recipe["tolerance"]["rel_to_max"]
    state = fixture.state_dict()
    cbam = _cbam(state).eval()
    pictures = _shifted(fixture, "x")[:, :, None].requires_grad_()
    weight = torch.from_numpy(array(f"cbam/{fixture.letter}/g", tuple(pictures.squeeze(2).shape)))
    real = torch.ones(len(pictures), 1, dtype=torch.bool)

    channels, places = cbam.channels(pictures, real), cbam.places(pictures, real)
    in_turn, second = _in_turn(cbam, pictures, real)
    yield fixture.close("Mc", channels.flatten(1), relative)
    yield fixture.close("Ms", places.squeeze(2), relative)
    yield fixture.close("Ms_seq", second.squeeze(2), relative)
    for kind, out in (("seq", in_turn), ("par", pictures * channels * places)):
        yield fixture.close(f"{kind}_eval", out.squeeze(2), relative)
        (gradient,) = torch.autograd.grad((out.squeeze(2) * weight).sum(), pictures)
        yield fixture.close(f"gx_{kind}", gradient.squeeze(2), relative)
    trained, _ = _in_turn(cbam.train(), pictures, real)
    yield fixture.close("seq_train", trained.squeeze(2), relative)
    mean, variance, count = cbam.buffers()
    yield fixture.close("run_mean", mean, relative)
    yield fixture.close("run_var", variance, relative)
    yield fixture.equal("nbt", count)


def _in_turn(cbam: Cbam, pictures: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """What the official network makes, and its second map."""
    left = pictures * cbam.channels(pictures, real)
    places = cbam.places(left, real)
    return left * places, places


def _cbam(state: Mapping[str, Tensor]) -> Cbam:
    inner, width = state["ChannelGate.mlp.1.weight"].shape
    cbam = Cbam(
        width, reduction=width // inner, kernel=(1, 7, 7), normalise=True, generator=_drawn_over()
    )
    ours = {f"mlp.{place}": f"ChannelGate.mlp.{place + 1}" for place in (0, 2)}
    ours |= {"conv": "SpatialGate.spatial.conv", "bn": "SpatialGate.spatial.bn"}
    found = {
        f"{own}.{kind}": value
        for own, official in ours.items()
        for kind, value in _under(state, official).items()
    }
    found["conv.weight"] = found["conv.weight"].unsqueeze(2)  # of one frame
    return _filled(cbam, found)


def _convolution(state: Mapping[str, Tensor], route: str, weight: Tensor, stride: int) -> TadaConv:
    """Ours, of an official weight [1, 1, c', c, h, w] and the route of that name."""
    kernel = weight[0, 0].unsqueeze(2)  # of one frame
    made = TadaConv(kernel.shape[1], kernel.shape[0], stride=stride, generator=_drawn_over())
    own = {f"rf.{name}": value for name, value in _under(state, route).items()}
    return _filled(made, {**own, "conv.weight": kernel})


def _routed(convolution: TadaConv, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Of one call: the route, and what comes out."""
    routes: list[Tensor] = []
    hook = convolution.rf.register_forward_hook(lambda _, __, out: routes.append(out))
    found = convolution(clips, _all_real(clips))
    hook.remove()
    return routes[0], found


def _norm(state: Mapping[str, Tensor], name: str) -> nn.BatchNorm3d:
    own = _under(state, name)
    return _filled(nn.BatchNorm3d(len(own["weight"])), own)


def _filled(part: Part, state: Mapping[str, Tensor]) -> Part:
    """With all of the state; only counters of steps stay as they are."""
    left = part.load_state_dict(dict(state), strict=False)
    assert not left.unexpected_keys, left
    assert all(name.endswith("num_batches_tracked") for name in left.missing_keys), left
    return part


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}


def _shifted(fixture: Fixture, name: str) -> Tensor:
    """An input of which every channel, or frame and channel, has a mean of its own."""
    both = [
        torch.from_numpy(array(key, tuple(shape)))
        for key, shape in (fixture.input[f"{name}{end}"]["array"] for end in ("", "_shift"))
    ]
    return both[0] + both[1]


def _all_real(clips: Tensor) -> Tensor:
    return torch.ones(clips.shape[0], clips.shape[2], dtype=torch.bool)


def _drawn_over() -> torch.Generator:
    """Draws a start that weights then replace."""
    return torch.Generator()
