"""DVLTA-VQA's head: three branches that a text weighs, and a score between two prompts.

"DVLTA-VQA: Decoupled Vision-Language Modeling with Text-Guided Adaptation for Blind Video Quality
Assessment".  No code of it is public; what the paper leaves open is said to be assumed.

Shape letters: b videos of a batch, t rows of a role of the longest of them, e width of the text's
embedding, which all branches come to (512).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, FiniteFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, relu

from vqbank.regressors.alignment import Align
from vqbank.regressors.batches import Input, PaddedBatch
from vqbank.regressors.cbam import Cbam
from vqbank.regressors.feature_map import MapPooling, channels_first
from vqbank.regressors.layers import linear
from vqbank.regressors.losses import LOSSES, Loss
from vqbank.regressors.network_parameters import AtLeastTwo, NotNegative, Positive
from vqbank.regressors.sequence import SequenceHead
from vqbank.regressors.tadaconv import (
    Aggregation,
    TadaConv,
    convolution,
    mean_of_real,
    normalised,
    only_real,
)
from vqbank.store.errors import HeadError

Fusion = Literal["text", "concat", "add"]
"""How branches come together.

- text: a sum, each weighed by its cosine with the mean of both adapted prompts (equations 10, 11).
- concat: side by side, and a linear layer without a bias.
- add: their sum.
"""
Temporal = Literal["tadaconv", "c3d", "r(2+1)d"]
"""What convolves frames in the temporal context module, twice; all else of it stays.

- tadaconv: 3x3 kernels that every frame calibrates.
- c3d: 3x3x3 kernels.
- r(2+1)d: 1x3x3, normalisation, ReLU, 3x1x1, all of one width (between them as in the paper of
  R(2+1)D).
"""
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
ROLES = ("semantic", "technical", "clip")
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, by which pixels are normalised; assumed
DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Widths inside the branches; all are assumed."""

    stem: int = 64
    """Channels behind the first convolution of frames; behind the others twice as many."""
    reduction: int = 4
    """Of the two layers that adapt a feature or a text: e to e / reduction to e."""
    hidden: int = 64
    """Between the two layers on FAST-VQA's map, as in its own head."""


@dataclass(kw_only=True, eq=False, repr=False)
class Dvlta(SequenceHead):
    """DVLTA-VQA: semantic, technical and temporal branches, fused by the text of two prompts.

    Roles are `semantic` (`vificlip.feature`, of frames), `technical` (`fastvqa.map`, of clips) and
    `clip` (`frames.pixels`), each with rows of its own; a branch whose role is not there is off, as
    in table 4 of the paper.  The text comes from the text bank beside the first role's feature.

    The defaults are the paper's network and learning rate.  `paper` adds what it leaves open, as
    MaxVQA has it: 20 epochs, of which the averaged weights are kept.  These keep 0.99 of themselves
    at a step, not MaxVQA's 0.999: of LIVE-VQC's 580 steps more than half would be the start.

    Parameters:
        prompts: the positive and the negative one, of the text bank; None for its first two.
        text_bank: its name, or its key.
        fusion: how branches come together.
        temporal: what convolves frames in the branch of `clip`.
        adapted: of the semantic feature, the part that its adapter makes (alpha, equation 4).
        text_adapted: the same of the text.  Assumed: a half.
        clamp: whether cosines below 0 weigh nothing.  Assumed: not.
        temperature: by which cosines are divided before the softmax over both prompts.  Assumed: 1.
        stem: channels behind the first convolution of frames; behind the others twice as many.
        reduction: of the layers that adapt semantics and text.
        hidden: width between the layers on FAST-VQA's map.
    """

    name: ClassVar[str] = "dvlta"
    stackable: ClassVar[bool] = False  # it has running statistics
    paper: ClassVar[Mapping[str, Any]] = MappingProxyType({"selection": "fixed", "averaging": 0.99})

    prompts: list[str] | None = None
    text_bank: str = "vificlip.text"
    fusion: Fusion = "text"
    temporal: Temporal = "tadaconv"
    adapted: Share = 0.4
    text_adapted: Share = 0.5
    clamp: bool = False
    temperature: Positive = 1.0
    stem: PositiveInt = 64
    reduction: PositiveInt = 4
    hidden: PositiveInt = 64
    loss: Loss = "1-plcc"
    standardise: bool = False
    align: Align = "repeat"  # of nothing: every role has rows of its own
    epochs: PositiveInt = 20
    patience: PositiveInt = 10
    batch_size: AtLeastTwo = 16
    learning_rate: Positive = 1e-3
    weight_decay: NotNegative = 1e-2  # PyTorch's, of AdamW
    memory_gib: Positive = 4.0

    @property
    def _own_rows(self) -> tuple[str, ...]:
        return ROLES

    def check_parameters(self) -> None:
        """As every head; prompts are two, and rows are taken as they were banked."""
        super().check_parameters()
        if self.standardise:
            raise HeadError(
                f"{self.name}: pixels and what is compared with a text cannot be standardised; "
                "leave standardise out"
            )
        if self.prompts is not None and len(self.prompts) != 2:
            raise HeadError(
                f"{self.name}: prompts are a positive and a negative one; got {len(self.prompts)}"
            )

    def _network(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        for role, one in inputs.items():
            self._check_role(role, one)
        beside = next(iter(inputs.values())).beside
        banked = beside.prompts(self.text_bank)
        prompts = self.prompts or list(banked[:2])
        if len(prompts) < 2:
            raise HeadError(
                f"{self.name}: {self.text_bank} has {prompts[0]!r} alone; bank a positive and a "
                "negative prompt"
            )
        for prompt in prompts:
            if prompt not in banked:
                raise HeadError(
                    f"{self.name}: {self.text_bank} has no prompt {prompt!r}; it has "
                    f"{', '.join(map(repr, banked))}; bank it, or name two of these by `prompts`"
                )
        text, _ = beside.text(self.text_bank, prompts)
        return DvltaNet(
            {role: one.shape for role, one in inputs.items()},
            text,
            sizes=Sizes(stem=self.stem, reduction=self.reduction, hidden=self.hidden),
            fusion=self.fusion,
            temporal=self.temporal,
            adapted=self.adapted,
            text_adapted=self.text_adapted,
            clamp=self.clamp,
            temperature=self.temperature,
            generator=generator,
        )

    def _check_role(self, role: str, one: Input) -> None:
        if role not in ROLES:
            raise HeadError(
                f"{self.name}: there is no branch for the role {role!r}; name features "
                f"{', '.join(ROLES)}, or some of them, or choose these by `roles`"
            )
        axes = {"semantic": "[d]", "technical": "[channels, ...]", "clip": "[3, height, width]"}
        right = {
            "semantic": len(one.shape) == 1,
            "technical": len(one.shape) >= 1,
            "clip": len(one.shape) == 3 and one.shape[0] == 3,
        }
        if not right[role]:
            raise HeadError(
                f"{self.name}: rows of {role} have shape {list(one.shape)}; its branch takes "
                f"{axes[role]}"
            )

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return LOSSES[self.loss](predicted, target)


class DvltaNet(nn.Module):
    """The network of `Dvlta`.

    Args of the constructor:
        shapes: of a row, by role.
        text: [2, e] of unit length, the positive prompt first; it is not learnt.
        sizes: widths.
        fusion: how branches come together.
        temporal: what convolves frames.
        adapted: part of the semantic feature that its adapter makes.
        text_adapted: the same of the text.
        clamp: whether weights below 0 are 0.
        temperature: of the softmax.
        generator: draws the start.

    Raises:
        HeadError: if semantic rows and text differ in width.
    """

    text: Tensor

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        text: Tensor,
        *,
        sizes: Sizes,
        fusion: Fusion = "text",
        temporal: Temporal = "tadaconv",
        adapted: float = 0.4,
        text_adapted: float = 0.5,
        clamp: bool = False,
        temperature: float = 1.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        width = text.shape[1]
        self.register_buffer("text", text, persistent=False)
        self.fusion, self.text_adapted = fusion, text_adapted
        self.clamp, self.temperature = clamp, temperature
        branches: dict[str, nn.Module] = {}
        for role, shape in shapes.items():
            if role == "semantic":
                if shape != (width,):
                    raise HeadError(
                        f"semantic rows of {shape[0]} values cannot be compared with a text of "
                        f"{width}; take the text bank of the same network"
                    )
                branches[role] = VideoAdapter(width, sizes, adapted, generator=generator)
            elif role == "technical":
                branches[role] = TechnicalBranch(shape[0], sizes, width, generator=generator)
            else:
                branches[role] = TemporalContext(temporal, sizes, width, generator=generator)
        self.branches = nn.ModuleDict(branches)
        inner = max(1, width // sizes.reduction)
        self.text_adapter = nn.Sequential(
            linear(width, inner, generator=generator),
            nn.ReLU(),
            linear(inner, width, generator=generator),
        )
        self.concat = None
        if fusion == "concat":
            self.concat = linear(len(shapes) * width, width, generator=generator)
            self.concat.register_parameter("bias", None)

    def features(self, batch: PaddedBatch) -> dict[str, Tensor]:
        """[b, e] by role."""
        return {
            role: branch(batch.values[role], batch.mask_of(role))
            for role, branch in self.branches.items()
        }

    def texts(self) -> Tensor:
        """[2, e]: both prompts, adapted."""
        adapted = self.text_adapter(self.text)
        return self.text_adapted * adapted + (1 - self.text_adapted) * self.text

    def weights(self, features: Mapping[str, Tensor], texts: Tensor) -> dict[str, Tensor]:
        """[b] by role: cosines with the mean of both prompts (equation 10)."""
        mean = texts.mean(dim=0)
        found = {role: cosine_similarity(one, mean, dim=1) for role, one in features.items()}
        return {role: relu(one) for role, one in found.items()} if self.clamp else found

    def fused(self, features: Mapping[str, Tensor], texts: Tensor) -> Tensor:
        """[b, e] (equation 11)."""
        if self.concat is not None:
            return self.concat(torch.cat(list(features.values()), dim=1))
        if self.fusion == "text":
            weights = self.weights(features, texts)
            features = {role: weights[role][:, None] * one for role, one in features.items()}
        return torch.stack(list(features.values())).sum(dim=0)

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b]."""
        texts = self.texts()
        fused = self.fused(self.features(batch), texts)
        similarity = cosine_similarity(fused[:, None], texts, dim=2)  # equation 12
        return pair_score(similarity / self.temperature)


def pair_score(logits: Tensor) -> Tensor:
    """[...]: the probability of the positive one of two prompts (equation 13, and MaxVQA's).

    Args:
        logits: [..., 2], the positive prompt's first.
    """
    return logits.softmax(dim=-1)[..., 0]


class VideoAdapter(nn.Module):
    """Video-based temporal CLIP: the mean over frames, and what an adapter adds (equations 1 to 4).

    The paper's 2-D convolutions are taken to be 1x1 on one place, which are linear layers.
    """

    def __init__(
        self, width: int, sizes: Sizes, adapted: float, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        inner = max(1, width // sizes.reduction)
        layers = []
        for before, after in ((width, inner), (inner, width)):
            layer = linear(before, after, generator=generator)
            layer.register_parameter("bias", None)  # a normalisation follows
            layers += [layer, nn.BatchNorm1d(after), nn.ReLU()]
        self.adapter = nn.Sequential(*layers)
        self.adapted = adapted

    def forward(self, frames: Tensor, real: Tensor) -> Tensor:
        """[b, e] of [b, t, e]."""
        counted = frames.float() * real.unsqueeze(2)
        mean = counted.sum(dim=1) / real.sum(dim=1, keepdim=True)
        return self.adapted * self.adapter(mean) + (1 - self.adapted) * mean


class TechnicalBranch(nn.Module):
    """Basic visual feature extraction: FAST-VQA's map through two trained convolutions (eq. 9).

    The paper calls the module frozen, but FAST-VQA's own second layer gives one value, not e.
    """

    def __init__(
        self, channels: int, sizes: Sizes, width: int, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.pooling = MapPooling(channels, sizes.hidden, width, bias=True, generator=generator)

    def forward(self, maps: Tensor, real: Tensor) -> Tensor:
        """[b, e] of [b, t, channels, ...]."""
        return self.pooling(channels_first(maps), real)


class TemporalContext(nn.Module):
    """Temporal context module: convolutions of a clip, attention, mean (equations 5 to 7)."""

    def __init__(
        self, temporal: Temporal, sizes: Sizes, width: int, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        stem = sizes.stem
        self.stem = convolution(3, stem, (3, 7, 7), generator=generator, stride=(2, 2, 2))
        self.stem_bn = nn.BatchNorm3d(stem)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.convolutions = nn.ModuleList(
            _CONVOLUTIONS[temporal](before, 2 * stem, stride=2, generator=generator)
            for before in (stem, 2 * stem)
        )
        self.aggregations = nn.ModuleList(Aggregation(2 * stem) for _ in range(2))
        self.attention = Cbam(
            2 * stem, reduction=16, kernel=(7, 7, 7), normalise=False, generator=generator
        )
        self.out = linear(2 * stem, width, generator=generator)

    def forward(self, clip: Tensor, real: Tensor) -> Tensor:
        """[b, e] of pixels [b, t, 3, h, w], 0 to 255."""
        values = only_real(_normalised_pixels(clip), real)
        real = real[:, ::2]  # of the stem's frames: those that begin at a real one
        values = self.pool(relu(normalised(self.stem_bn, self.stem(values), real)))
        for convolve, aggregate in zip(self.convolutions, self.aggregations, strict=True):
            values = relu(aggregate(convolve(values, real), real))
        attention = self.attention
        values = values * attention.channels(values, real) * attention.places(values, real)
        return self.out(mean_of_real(values, real))


def _normalised_pixels(clip: Tensor) -> Tensor:
    """[b, 3, t, h, w]: bytes become floats on the device where they are."""
    mean, deviation = (torch.tensor(one, device=clip.device) for one in (MEAN, DEVIATION))
    values = clip.transpose(1, 2).float()
    shape = (1, 3, 1, 1, 1)
    return (values - 255 * mean.view(shape)) / (255 * deviation.view(shape))


class C3dConv(nn.Module):
    """A 3x3x3 convolution in place of `TadaConv`."""

    def __init__(
        self, width_in: int, width: int, *, stride: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        steps = (1, stride, stride)
        self.conv = convolution(width_in, width, (3, 3, 3), generator=generator, stride=steps)

    def forward(self, values: Tensor, real: Tensor) -> Tensor:
        """[b, c', t, h', w'] of [b, c, t, h, w]."""
        return only_real(self.conv(values), real)


class FactorisedConv(nn.Module):
    """A convolution over space, then one over time (R(2+1)D), in place of `TadaConv`."""

    def __init__(
        self, width_in: int, width: int, *, stride: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        steps = (1, stride, stride)
        self.space = convolution(width_in, width, (1, 3, 3), generator=generator, stride=steps)
        self.bn = nn.BatchNorm3d(width)
        self.time = convolution(width, width, (3, 1, 1), generator=generator)

    def forward(self, values: Tensor, real: Tensor) -> Tensor:
        """[b, c', t, h', w'] of [b, c, t, h, w]."""
        return only_real(self.time(relu(normalised(self.bn, self.space(values), real))), real)


_CONVOLUTIONS: dict[Temporal, type[TadaConv | C3dConv | FactorisedConv]] = {
    "tadaconv": TadaConv,
    "c3d": C3dConv,
    "r(2+1)d": FactorisedConv,
}
