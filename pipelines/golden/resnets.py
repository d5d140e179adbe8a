"""Players of the ResNets: VSFA's features, four stages of them, and UNIQUE."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vqbank.extractors import make_extractor
from vqbank.pipelines.golden.fixture import Check, Fixture, checkpoint, frames

_RELATIVE = 1e-5
_SCORE = 1e-6  # absolute
_CPU = torch.device("cpu")


def play_vsfa_resnet50(fixture: Fixture) -> Iterator[Check]:
    """Means and deviations of the last stage of ResNet-50."""
    import torchvision.models

    yield fixture.keys(_without_counters(torchvision.models.resnet50().state_dict()))
    rows = _rows("semantic", fixture, ("last",))
    yield fixture.close("features", rows["last"], _RELATIVE)


def play_resnet50_hierarchy(fixture: Fixture) -> Iterator[Check]:
    """Means and deviations of all stages of ResNet-50, stage by stage and together."""
    import torchvision.models

    yield fixture.keys(_without_counters(torchvision.models.resnet50().state_dict()))
    yield from _stages(fixture, _rows("semantic", fixture, ("stages",))["stages"])


def play_unique_resnet34(fixture: Fixture) -> Iterator[Check]:
    """The same of UNIQUE's ResNet-34, and the score of its own head."""
    from vqbank.extractors.networks.unique import Unique

    yield fixture.keys(_without_counters(Unique().state_dict()))
    rows = _rows("quality", fixture, ("stages", "score"))
    yield from _stages(fixture, rows["stages"])
    mean, variance = rows["score"].T
    yield fixture.close("score_mean", mean, absolute=_SCORE)
    yield fixture.close("score_var", variance, absolute=_SCORE)


def _stages(fixture: Fixture, rows: Tensor) -> Iterator[Check]:
    """The tolerance of `features` is that of its strictest stage."""
    names = sorted(key for key in fixture.expected if key.startswith("stage"))
    sizes = [fixture.expected[name].shape[1] for name in names]
    for name, stage in zip(names, rows.split(sizes, dim=1), strict=True):
        yield fixture.close(name, stage, _RELATIVE)
    yield fixture.close("features", rows, _RELATIVE)


def _rows(name: str, fixture: Fixture, outputs: tuple[str, ...]) -> dict[str, Tensor]:
    """What our extractor makes of the fixture's frames with its weights: [n, *shape] by output."""
    pictures = torch.from_numpy(frames(*fixture.input["frames"])).permute(0, 3, 1, 2)
    with checkpoint(fixture.state_dict()) as path:
        extractor = make_extractor(name, weights=str(path), outputs=outputs)
        network = extractor.build(_CPU)
    with torch.inference_mode():
        batches = [network(picture[None, None]) for picture in pictures]
    return {output: torch.cat([rows[output][:, 0] for rows in batches]) for output in outputs}


def _without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fixtures were made from files of before PyTorch counted batches."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
