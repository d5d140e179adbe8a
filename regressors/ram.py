"""RAM-VQA's head: what a video shows by CLIP, how it looks by fragments and what restores them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from vqbank.regressors.alignment import Align
from vqbank.regressors.batches import Input, PaddedBatch, Series
from vqbank.regressors.drawing import drawn
from vqbank.regressors.losses import plcc_rank_loss
from vqbank.regressors.network_parameters import AtLeastTwo, NotNegative, Positive
from vqbank.regressors.plan import RowChoice, Schedule
from vqbank.regressors.ram_network import (
    GRID,
    STREAMS,
    AestheticBranch,
    Fusion,
    LevelScore,
    LineScore,
    Modulation,
    RamNetwork,
    TechnicalBranch,
    TechnicalSizes,
    Usage,
)
from vqbank.regressors.ram_start import start_from_clip
from vqbank.regressors.sequence import SequenceHead
from vqbank.store.errors import HeadError
from vqbank.store.table import FeatureTable

AESTHETIC, FRAGMENTS, RESIDUALS = "aesthetic", "fragments", "residuals"
TESTED = 3
"""Clips of a video that are predicted, its first rows; the others are for training."""


@dataclass(kw_only=True, eq=False, repr=False)
class Ram(SequenceHead):
    """RAM-VQA (IEEE TIP 2026): levels of quality that an adapted CLIP and fragments are like.

    The roles are `aesthetic`: `clip.tokens`, or features of frames that stay as they are, such as
    `clip.embedding`; `fragments` and `residuals`: `residual.fragments` and `residual.residuals`, or
    their banked embeddings, `residual.fragment-tokens` and `residual.residual-tokens`.  A step of
    training sees one of the clips from random starts; a prediction is the mean of the three that
    are evenly spread.  Levels are the rows of a text bank beside `aesthetic`, the best one first,
    such as `ram-prompts` makes.

    The defaults are for a processor, one layer of interaction and a learning rate for fewer epochs;
    embeddings of fragments that are banked, and so frozen, make the rest of them.  `paper` holds
    twelve layers, and what the paper leaves open: 30 epochs of batches of 8, weight decay 0.05,
    nothing held out, PLCC and rank loss.

    Parameters:
        modulation: whether CLIP is adapted (CeM), where its tokens are given.
        blend: part of the adapted class token that goes on; KSVQE has 0.5.
        importance: whether patches are multiplied by their likeness to the class token.
        technical: whether fragments are seen at all.
        usage: of what restoration says; see `ram_network.Usage`.
        layers: L_c, of the interaction of frames.
        width: of its tokens, where fragments are pixels or features of frames.
        attentions: heads of its attentions.
        clip_frames: of a banked clip, the first ones, which are seen.
        part: frames of a part of a clip, which gives one message.
        tmat: whether frames look at their neighbours.
        ccct: whether parts tell each other by messages.
        mit_skip: whether the integration of frames adds them again, as X-CLIP's code does.
        prompts: text bank of the levels, by name or key; None scores by a linear layer.
        anchor: the level whose share is the score, counted from the best.
        scale: what cosines with levels are multiplied by.
        from_clip: whether embeddings of fragments and layers of messages start from CLIP's own,
            which the tail of `aesthetic` has where it is whole.
    """

    name: ClassVar[str] = "ram"
    stackable: ClassVar[bool] = False
    paper: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "layers": 12,
            "epochs": 30,
            "patience": 30,
            "learning_rate": 1e-5,
            "schedule": "cosine",
            "selection": "fixed",
        }
    )

    modulation: bool = True
    blend: Annotated[float, Field(ge=0, le=1)] = 1.0
    importance: bool = True
    technical: bool = True
    usage: Usage = "cross"
    layers: PositiveInt = 1
    width: PositiveInt = 768
    attentions: PositiveInt = 12
    clip_frames: PositiveInt = 32
    part: PositiveInt = 8
    tmat: bool = True
    ccct: bool = True
    mit_skip: bool = False
    prompts: str | None = "ram-prompts.text"
    anchor: NonNegativeInt = 0
    scale: Positive = 1.0
    from_clip: bool = True
    align: Align = "repeat"
    epochs: PositiveInt = 10
    patience: PositiveInt = 5
    batch_size: AtLeastTwo = 8
    learning_rate: Positive = 1e-4
    weight_decay: NotNegative = 0.05
    schedule: Schedule = "cosine"
    standardise: bool = False

    def check_parameters(self) -> None:
        """As every head; and clips have whole pairs and parts."""
        super().check_parameters()
        if self.clip_frames % 2 or self.clip_frames % self.part:
            raise HeadError(
                f"{self.name}: clip_frames {self.clip_frames} are not whole pairs and parts of "
                f"{self.part}; take a multiple of both"
            )
        if self.standardise:
            raise HeadError(
                f"{self.name}: rows are pixels and states of networks, which are not standardised; "
                "leave standardise out"
            )

    @property
    def _streams(self) -> tuple[str, ...]:
        """Roles of fragments that are looked at."""
        if not self.technical:
            return ()
        return tuple(
            dict.fromkeys(
                role
                for stream in STREAMS[self.usage]
                for role in ((FRAGMENTS, RESIDUALS) if stream == "restored" else (stream,))
            )
        )

    @property
    def _own_rows(self) -> tuple[str, ...]:
        return (AESTHETIC, FRAGMENTS, RESIDUALS)

    @property
    def _row_choice(self) -> Mapping[str, RowChoice]:
        return dict.fromkeys(self._streams, clips_of)

    def _chosen(self, table: FeatureTable) -> FeatureTable:
        table, wanted = super()._chosen(table), (AESTHETIC, *self._streams)
        if not set(wanted) <= set(table.roles):
            return table  # that it has other roles is told where it is looked at
        return table.select([role for role in table.roles if role in wanted])

    def _series(self, table: FeatureTable) -> Series:
        self._check_roles(table.roles)
        return super()._series(table)

    def _check_roles(self, roles: Collection[str]) -> None:
        wanted = (AESTHETIC, *self._streams)
        if not set(wanted) <= set(roles):
            raise HeadError(
                f"{self.name} takes the roles {', '.join(wanted)}; got {', '.join(roles)}; "
                "name them in `features`"
            )

    def _network(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        self._check_roles(inputs)
        aesthetic, embedding = self._aesthetic(inputs[AESTHETIC], generator)
        technical = fusion = None
        if self.technical:
            shape = self._clip_shape(inputs)
            sizes = TechnicalSizes(
                width=shape[-1] if len(shape) == 3 else self.width,
                heads=self.attentions,
                embedding=embedding,
                layers=self.layers,
                part=self.part,
                usage=self.usage,
                mutual=self.tmat,
                messages=self.ccct,
                skip=self.mit_skip,
            )
            technical = drawn(partial(TechnicalBranch, shape, sizes), generator)
            fusion = drawn(partial(Fusion, embedding), generator)
        score: LevelScore | LineScore
        if self.prompts is None:
            score = drawn(partial(LineScore, embedding), generator)
        else:
            score = self._levels(inputs[AESTHETIC], embedding)
        network = RamNetwork(aesthetic, technical, fusion, score)
        return OfBatch(network, self._streams, self.clip_frames)

    def _begun(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        network = self._network(inputs, generator)
        assert isinstance(network, OfBatch)
        if self.from_clip and network.network.technical is not None:
            beside = inputs[AESTHETIC].beside
            start_from_clip(network.network.technical, beside.early_tower(), beside.image_tail())
        return network

    def _aesthetic(
        self, given: Input, generator: torch.Generator
    ) -> tuple[AestheticBranch | None, int]:
        """The adapted tower, where rows are states, and the width of a frame's feature."""
        if len(given.shape) == 1:
            return None, given.width
        tail = given.beside.image_tail()
        width, embedding = tail.proj.shape
        make = partial(Modulation, width, blend=self.blend, importance=self.importance)
        numbers = range(tail.cut, tail.numbers.stop) if self.modulation else ()
        return AestheticBranch(tail, {n: drawn(make, generator) for n in numbers}), embedding

    def _clip_shape(self, inputs: Mapping[str, Input]) -> tuple[int, ...]:
        """Of what is seen of a clip.

        Raises:
            HeadError: if both streams are not alike, frames are too few, features of frames are
                to ask each other, or restored fragments are asked for and there are no pixels.
        """
        shapes = {role: inputs[role].shape for role in self._streams}
        shape = shapes[self._streams[0]]
        if len(set(shapes.values())) > 1 or len(shape) not in (2, 3, 4):
            raise HeadError(
                f"{self.name}: clips are [frames, ...] and alike in all streams; these are "
                + ", ".join(f"{role} {list(one)}" for role, one in shapes.items())
            )
        if shape[0] < self.clip_frames:
            raise HeadError(
                f"{self.name}: clips of {shape[0]} frames are banked; lower clip_frames, which is "
                f"{self.clip_frames}"
            )
        if self.usage == "cross" and len(shape) == 2:
            raise HeadError(
                f"{self.name}: usage 'cross' asks the tokens of a frame, and features of frames "
                f"{list(shape)} have one, which answers the same whatever asks; take usage "
                "'residual-concat', or residual.fragment-tokens and residual.residual-tokens"
            )
        if "restored" in STREAMS[self.usage] and len(shape) != 4:
            raise HeadError(
                f"{self.name}: usage {self.usage!r} restores pixels; take residual.fragments and "
                "residual.residuals"
            )
        return (self.clip_frames, *shape[1:])

    def _levels(self, given: Input, embedding: int) -> LevelScore:
        """The score by the levels of a text bank.

        Raises:
            HeadError: if it is of another width, or has no level of the anchor's number.
        """
        assert self.prompts is not None
        rows, _ = given.beside.text(self.prompts, given.beside.prompts(self.prompts))
        if rows.shape[1] != embedding or self.anchor >= len(rows):
            raise HeadError(
                f"{self.name}: text bank {self.prompts} has {len(rows)} levels of width "
                f"{rows.shape[1]}; features have {embedding}, and the anchor is level {self.anchor}"
            )
        return LevelScore(rows, anchor=self.anchor, scale=self.scale)

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return plcc_rank_loss(predicted, target)


def clips_of(length: int, rng: np.random.Generator | None) -> NDArray[np.int64]:
    """One clip from a random start in training, the three that are evenly spread otherwise.

    Raises:
        HeadError: if there is none to train on.
    """
    if rng is None:
        return np.arange(min(TESTED, length))
    if length <= TESTED:
        raise HeadError(
            f"of the {length} clips of a video, {TESTED} are for testing and none for training; "
            "bank the extractor residual with train_clips: 4"
        )
    return rng.integers(TESTED, length, size=1)


class OfBatch(nn.Module):
    """RAM-VQA's network as heads have networks.

    Args of the constructor:
        network: of frames and clips.
        streams: roles of clips.
        frames: of a clip, the first ones, which are seen.
    """

    def __init__(self, network: RamNetwork, streams: tuple[str, ...], frames: int) -> None:
        super().__init__()
        self.network = network
        self.streams = streams
        self.frames = frames

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b]."""
        return self.network(*self.seen(batch))

    def local(self, batch: PaddedBatch) -> Tensor:
        """[b, g, g]: the score of every fragment, the mean over clips."""
        if self.network.technical is None:
            raise HeadError("this network has no technical branch, and sees no fragments")
        embeddings = self.network.technical.embeddings.values()
        if any(one.patches != GRID * GRID for one in embeddings):
            raise HeadError(
                f"this network sees no {GRID} x {GRID} fragments of a frame: {FRAGMENTS} are "
                "features of whole frames, or of another grid"
            )
        scores = self.network.local(*self.seen(batch)).mean(dim=1)
        return scores.unflatten(1, (GRID, -1))

    def seen(self, batch: PaddedBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What the network takes of a batch."""
        clips = {role: batch.values[role][:, :, : self.frames] for role in self.streams}
        return batch.values[AESTHETIC], batch.mask_of(AESTHETIC), clips
