"""What a recipe costs: parameters, multiply-adds and bytes, counted without weights or videos.

Networks of official size stand on PyTorch's meta device, where shapes are computed and no numbers.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vqbank.extractors import make_extractor, specs_of
from vqbank.extractors.base import Extractor, WeightedExtractor
from vqbank.extractors.sampling import Clips, MotionSampling, Timeline
from vqbank.extractors.views import ClipView
from vqbank.extractors.weights import RANDOM
from vqbank.pipelines.recipe import Recipe
from vqbank.regressors import make_head
from vqbank.regressors.cost import at_start
from vqbank.regressors.sequence import SequenceHead
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import HeadError, UnknownNameError, unknown_name
from vqbank.store.schema import FeatureSpec, Video, storage_dtype
from vqbank.store.table import FeatureTable

if TYPE_CHECKING:
    from torch import Tensor

CPU, META = torch.device("cpu"), torch.device("meta")
TIMES_BYTES = 16
"""Of a row's time and frame index."""
UNCOUNTABLE = (RuntimeError, NotImplementedError, TypeError, ValueError)
"""What code raises that asks for a number where there are only shapes."""


COUNTED = ("parameters", "multiply_adds", "seconds", "bytes")
"""Of a cost, the fields that are numbers."""


@dataclass(frozen=True)
class Shape:
    """A video."""

    width: int
    height: int
    seconds: float
    rate: float
    """Frames per second."""

    @property
    def timeline(self) -> Timeline:
        """Of its frames."""
        frames = max(1, round(self.seconds * self.rate))
        times = np.arange(frames) / self.rate
        return Timeline(times, frames, self.rate, "cost/video", self.height, self.width)


@dataclass(frozen=True)
class Cost:
    """Of one extractor or head, for one video; None is not known."""

    name: str
    parameters: int | None
    """Of the networks that run; of a head, what it learns."""
    multiply_adds: float | None
    """Of products of matrices, convolutions and attention."""
    seconds: float | None
    """Of an extractor, in the network, as a bank's commits tell it; of a head, on this machine."""
    bytes: int | None
    """What is banked."""
    note: str = ""


def extractor_costs(
    recipe: Recipe, shape: Shape, *, bank: FeatureStore | None = None
) -> Iterator[Cost]:
    """Of every extractor of a recipe, by its entry.

    Args:
        recipe: names extractors.
        shape: of the video.
        bank: whose commits tell what extraction took, if any.
    """
    for entry, extractor in _extractors(recipe).items():
        clips = _clips(extractor, shape.timeline)
        rows = int((clips.rows >= 0).sum())
        specs = specs_of(extractor, decoder=recipe.decoder).values()
        counted = _counted(extractor, shape, clips.frames.shape[1])
        yield Cost(
            entry,
            None if counted is None else counted.parameters,
            None if counted is None else counted.multiply_adds * len(clips.frames),
            None if bank is None else seconds_banked(bank, [spec.name for spec in specs]),
            rows * sum(_row_bytes(spec) for spec in specs),
            "not counted: its network asks for numbers" if counted is None else counted.note,
        )


def head_costs(recipe: Recipe, shape: Shape) -> Iterator[Cost]:
    """Of every head of a recipe, by its label.

    Raises:
        UnknownNameError: if a feature is none of an extractor of the recipe.
    """
    series = _series(recipe, shape)
    for label in recipe.heads:
        name, parameters = recipe.head(label)
        head = make_head(name, **parameters)
        if isinstance(head, SequenceHead):
            table = FeatureTable.from_arrays(
                [Video("cost/video", Path("video"))],
                {role: [rows] for role, rows in series.items()},
            )
            yield _of_network(label, head, table)
        else:
            yield Cost(label, None, None, None, None, "no network: it costs milliseconds")


def seconds_banked(bank: FeatureStore, names: Sequence[str]) -> float | None:
    """Seconds in the network per video, as the commits of features tell; None where none does.

    Outputs that share a network have the same: the longest is taken.  A bank of several keys of a
    name tells of all of them, but for those of random weights, whose networks may be tiny ones.
    """
    means = []
    for name in names:
        known = [spec for spec in bank.named(name) if not spec.uses_random_weights]
        shards = [shard for spec in known for shard in bank.winners(spec)]
        told = [s.record for s in shards if "network_seconds" in s.record["provenance"]]
        if told:
            seconds = sum(record["provenance"]["network_seconds"] for record in told)
            means.append(seconds / sum(record["videos"] for record in told))
    return max(means, default=None)


@dataclass(frozen=True)
class _Counted:
    parameters: int
    multiply_adds: float
    note: str = ""


def _extractors(recipe: Recipe) -> dict[str, Extractor]:
    """Of official size, without weights."""
    made = {}
    for entry, parameters in recipe.extractors.items():
        own = dict(parameters)
        extractor = make_extractor(str(own.pop("extractor", entry)), **own)
        if isinstance(extractor, WeightedExtractor):
            # Weights of FAST-VQA say which of its models they are of.
            told = "model" in own or not hasattr(extractor, "model")
            model = {} if told or "weights" not in own else {"model": own["weights"]}
            extractor = replace(extractor, weights=RANDOM, **model)
        made[entry] = extractor
    return made


def _clips(extractor: Extractor, timeline: Timeline) -> Clips:
    sampling = extractor.sampling
    if isinstance(sampling, MotionSampling):
        return sampling.clips_by_motion(timeline, np.zeros(len(timeline), np.float32))
    return sampling.clips(timeline)


def _counted(extractor: Extractor, shape: Shape, length: int) -> _Counted | None:
    """Of one clip of so many frames; None where it cannot be counted."""
    view = extractor.view
    own = view.of_clip(shape.timeline, 0) if isinstance(view, ClipView) else view
    frame = own(torch.zeros(1, 3, shape.height, shape.width, dtype=torch.uint8))
    if not isinstance(extractor, WeightedExtractor):  # no network
        return _Counted(0, 0.0)
    clip = torch.empty(1, length, *frame.shape[1:], dtype=torch.uint8, device=META)
    for outputs, note in ((extractor.outputs, ""), ((), "of its usual outputs")):
        try:
            return replace(_of_clip(replace(extractor, outputs=outputs), clip), note=note)
        except UNCOUNTABLE:
            continue
    return None


def _of_clip(extractor: Extractor, clip: "Tensor") -> _Counted:
    with torch.device(META):
        compute = extractor.build(META)
    return _run(compute, clip)


def _run(compute: Callable[[Any], object], inputs: object) -> _Counted:
    if isinstance(compute, nn.Module):
        compute.requires_grad_(False)  # whoever counts by module asks for the gradient of all else
    with _used() as parameters, torch.inference_mode(), FlopCounterMode(display=False) as counter:
        compute(inputs)
    count = sum(one.numel() for one in parameters.values())
    return _Counted(count, counter.get_total_flops() / 2)


@contextmanager
def _used() -> Iterator[dict[int, nn.Parameter]]:
    """The parameters of all modules that are called, with those of their parts, by identity."""
    found: dict[int, nn.Parameter] = {}
    modules: list[nn.Module] = []  # kept, so that no other takes the identity of one that is gone

    def see(module: nn.Module, _: object) -> None:
        modules.append(module)
        found.update((id(one), one) for one in module.parameters())

    hook = nn.modules.module.register_module_forward_pre_hook(see)
    try:
        yield found
    finally:
        hook.remove()


def _series(recipe: Recipe, shape: Shape) -> dict[str, Any]:
    """Zeros [t, *shape] by role, as many as there would be."""
    extractors = _extractors(recipe)
    series = {}
    for role, feature in recipe.features.items():
        entry, _, output = feature.partition("@")[0].partition(".")
        if entry not in extractors:
            raise UnknownNameError(
                f"features: {unknown_name('extractor of this recipe', entry, extractors)}"
            )
        extractor = replace(extractors[entry], outputs=(output,))
        (spec,) = specs_of(extractor, decoder=recipe.decoder).values()
        rows = int((_clips(extractor, shape.timeline).rows >= 0).sum())
        series[role] = np.zeros((rows, *spec.shape), spec.storage_dtype)
    return series


def _of_network(label: str, head: SequenceHead, table: FeatureTable) -> Cost:
    try:
        real = at_start(head, table, CPU)
    except HeadError as error:
        return Cost(label, None, None, None, None, f"not counted: {error}")
    learnt = sum(one.numel() for one in real.network.parameters() if one.requires_grad)
    try:
        counted = _run(*at_start(head, table, META))
    except UNCOUNTABLE:
        counted = _run(*real)
    begun = time.perf_counter()
    with torch.inference_mode():
        real.network(real.batch)
    seconds = time.perf_counter() - begun
    return Cost(label, learnt, counted.multiply_adds, seconds, None)


def _row_bytes(spec: FeatureSpec) -> int:
    sides = (prod(side.shape) * storage_dtype(side.dtype).itemsize for side in spec.side)
    return spec.row_bytes + TIMES_BYTES + sum(sides)


def summed(costs: Sequence[Cost]) -> Cost:
    """All extractors together; what is not known of one is not known of all.

    Entries of one extractor count as networks of their own, also where their weights are the same.
    """

    def total(name: str) -> Any:
        values = [getattr(cost, name) for cost in costs]
        return None if None in values else sum(values)

    return Cost("all", *(total(name) for name in COUNTED))
