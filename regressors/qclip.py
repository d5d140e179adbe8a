"""Q-CLIP: adapters in frozen towers, prompts of quality levels, a weighted sum of similarities."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from vqbank.regressors.alignment import Align
from vqbank.regressors.batches import Input, PaddedBatch
from vqbank.regressors.companions import Companions
from vqbank.regressors.losses import LOSSES, Loss
from vqbank.regressors.network_parameters import AtLeastTwo, NotNegative, Positive, Selection
from vqbank.regressors.plan import RowChoice, Schedule
from vqbank.regressors.scma import (
    FixedPrompts,
    QClipNetwork,
    Sharing,
    Towers,
    Wiring,
    of_official,
)
from vqbank.regressors.sequence import SequenceHead
from vqbank.regressors.tensors import torch_threads
from vqbank.store.errors import HeadError
from vqbank.store.table import FeatureTable

Prompts = Literal["five", "antonym"]
Context = Literal["learnt", "fixed"]
LEVELS: Mapping[Prompts, tuple[str, ...]] = {
    "five": ("bad", "poor", "fair", "good", "excellent"),
    "antonym": ("low", "high"),
}
"""Words of the prompts, in the order of the official code."""
_TEMPLATES: Mapping[Context, str] = {
    "learnt": "X X X a video of {} quality",
    "fixed": "a video of {} quality",
}
_ADAPTED: Mapping[str, Any] = {
    "adapted_blocks": 6,
    "context": "learnt",
    "epochs": 8,
    "patience": 8,
    "warmup_epochs": 1.0,
    "weight_decay": 1e-4,  # of the official code on LSVQ; it has 5e-2 on most small sets
    "selection": "fixed",
}


@dataclass(kw_only=True, eq=False, repr=False)
class QClip(SequenceHead):
    """Shared cross-modal adapters on Perception Encoder's towers (Q-CLIP, ICML 2026).

    On `pe.tokens`, the states at a cut, or, without adapters in blocks, on `pe.pooled`, which has
    16 kB for a video.  The mean feature of a video's frames is compared with prompts; what is
    learnt are the adapters, the words in front of every prompt, and the weights of the prompts.

    `laptop` adapts nothing but what is pooled; `paper` has 139,555 numbers to learn, and needs the
    states after block 17 or before; `code` has the 1,907,977 of the official code, whose adapters
    stand behind blocks.  Both papers' forms are trained for 8 epochs on all training videos, on a
    graphics card.
    """

    name: ClassVar[str] = "qclip"
    paper: ClassVar[Mapping[str, Any]] = MappingProxyType(_ADAPTED)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"code": {**_ADAPTED, "wiring": "sequential", "bottleneck": 128}}
    )

    adapted_blocks: Annotated[int, Field(ge=0)] = 0
    """How many of the last blocks of a tower have an adapter."""
    bottleneck: PositiveInt = 8
    """Width inside adapters."""
    wiring: Wiring = "parallel"
    """Adapters beside blocks, as in the paper, or behind them (`sequential`), as in the code."""
    sharing: Sharing = "layers"
    """One adapter for both towers whose middle part is one for all blocks; `towers`: a middle part
    for each block; `none`: each tower has its own."""
    towers: Towers = "both"
    """Which have adapters."""
    prompts: Prompts = "five"
    """Five levels, or an antonym pair."""
    context: Context = "fixed"
    """Whether three words in front of every prompt are learnt; with fixed ones, and no adapters in
    the text tower, prompts go through it once."""
    frames: PositiveInt = 8
    """Rows of one choice of frames.  Where more are banked, such as four choices or several draws,
    training takes one of them, drawn anew at every step, and tests take the first."""
    loss: Loss = "plcc+rank"
    align: Align = "nearest"  # of one role, which is its own grid
    standardise: bool = False
    epochs: PositiveInt = 30
    patience: PositiveInt = 10
    batch_size: AtLeastTwo = 12
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 5e-2
    schedule: Schedule = "cosine"
    warmup_epochs: NotNegative = 1.0
    selection: Selection = "held-out"

    @property
    def words(self) -> tuple[str, ...]:
        """[p]: the prompts."""
        return tuple(_TEMPLATES[self.context].format(level) for level in LEVELS[self.prompts])

    @property
    def _row_choice(self) -> RowChoice | None:
        return partial(_one_choice, frames=self.frames)

    def _stacks(self, inputs: Mapping[str, Input]) -> bool:
        """Where no tower is run in a step."""
        return self.adapted_blocks == 0 and self.context == "fixed" and _are_pooled(inputs)

    def _network(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        if len(inputs) != 1:
            raise HeadError(
                f"qclip reads one feature, pe.tokens or pe.pooled; these are "
                f"{', '.join(inputs)}: name one by roles"
            )
        ((role, one),) = inputs.items()
        runs_text = self.context == "learnt" or (self.adapted_blocks and self.towers != "image")
        image = one.beside.image_tail()
        network = QClipNetwork(
            image.proj.detach() if _are_pooled(inputs) else image,
            one.beside.text_tail() if runs_text else _fixed_prompts(one.beside, self.words),
            one.beside.tokens(self.words),
            adapted=self.adapted_blocks,
            learns_context=self.context == "learnt",
            inner=self.bottleneck,
            wiring=self.wiring,
            sharing=self.sharing,
            towers=self.towers,
            generator=generator,
        )
        return _OfFrames(network, role)

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return LOSSES[self.loss](predicted, target)

    @classmethod
    def published(cls, weights: Path, table: FeatureTable, **parameters: Any) -> Self:
        """As `Head.published`; where parameters say nothing else, they are those of the code."""
        return super().published(weights, table, **{**cls.presets["code"], **parameters})

    def _from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # The official code has adapters for all blocks, and runs those of the last ones.
        official = of_official(state)
        numbers = [int(name.split(".")[1]) for name in official if name.startswith(_ADAPTERS)]
        first = max(numbers, default=-1) + 1 - self.adapted_blocks
        return {
            f"network.scma.{name}": value
            for name, value in official.items()
            if name.startswith(_LEARNT)
            and not (name.startswith(_ADAPTERS) and int(name.split(".")[1]) < first)
        }


_ADAPTERS = "encoder_adapters."
_LEARNT = (
    _ADAPTERS, "shared_core.", "proj_adapter.", "image_adapter_weight", "text_adapter_weight",
    "image_proj_adapter_weight", "text_proj_adapter_weight", "context_tokens", "score_proj",
)  # fmt: skip
"""Of an official checkpoint; the rest are the frozen towers and the prompts' embeddings."""


class _OfFrames(nn.Module):
    """Q-CLIP's network as heads have networks."""

    def __init__(self, network: QClipNetwork, role: str) -> None:
        super().__init__()
        self.network = network
        self.role = role

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b]."""
        return self.network(batch.values[self.role].float(), batch.mask)


def _are_pooled(inputs: Mapping[str, Input]) -> bool:
    return all(len(one.shape) == 1 for one in inputs.values())


def _one_choice(count: int, draw: np.random.Generator | None, *, frames: int) -> NDArray[np.int64]:
    """The rows of one of several choices of `frames` rows each; all of fewer, as of a window."""
    if count < frames:
        return np.arange(count)
    if count % frames:
        raise HeadError(
            f"a video has {count} rows, which are no choices of {frames} frames: set `frames` to "
            "the rows of one choice"
        )
    which = 0 if draw is None else int(draw.integers(count // frames))
    return np.arange(which * frames, (which + 1) * frames)


def _fixed_prompts(beside: Companions, prompts: tuple[str, ...]) -> FixedPrompts:
    """Computed once in a process: the tower is frozen, and networks are made often."""
    return _fixed_prompts_of(beside, prompts, beside.tower_sha256("text"))


@lru_cache(maxsize=8)
def _fixed_prompts_of(beside: Companions, prompts: tuple[str, ...], sha256: str) -> FixedPrompts:
    with torch.device("cpu"), torch_threads(1):  # the same bits whoever asks first
        return FixedPrompts.of(beside.text_tail(), beside.tokens(prompts))
