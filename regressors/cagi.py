"""A2INet's head: two series of features that guide each other, then quality over time.

"Semantic-Aware and Quality-Aware Interaction Network for Blind Video Quality Assessment", ACM MM
2024, sections 3.2 and 3.3.  No code of it is public; where the paper is silent the value is an
option, and its default is said to be assumed.

Shape letters: b videos of a batch, t rows of the longest of them, d = `width`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import l1_loss, relu, scaled_dot_product_attention

from vqbank.regressors.alignment import Align
from vqbank.regressors.batches import Input, PaddedBatch, Series
from vqbank.regressors.layers import GruLayer, dropout, start_uniform
from vqbank.regressors.losses import margin_rank_loss
from vqbank.regressors.network_parameters import AtLeastTwo, NotNegative, Positive, Probability
from vqbank.regressors.score_pooling import POOLINGS, Pooling
from vqbank.regressors.sequence import SequenceHead
from vqbank.store.errors import HeadError
from vqbank.store.table import FeatureTable

Wiring = Literal[
    "full",
    "without-catm",
    "adain-s-to-q",
    "adain-q-to-s",
    "fgin-s-to-q",
    "fgin-q-to-s",
    "concat",
    "concat-mlp",
]
"""What is left of the network in the ablations of the paper.

- full: both series guide each other, attention, temporal modelling.
- without-catm: the same without temporal modelling (FE + GI of table 7, CAGI of table 5).
- adain-s-to-q, adain-q-to-s, fgin-s-to-q, fgin-q-to-s: the full network in which one series alone
  goes on, normalised and deformed to the other, by equation 1 or 2 (table 6).
- concat: rows side by side, straight to the recurrent layer (FE of table 7, tables 4 and 5); this
  and the next take any number of series.
- concat-mlp: a layer, ReLU and dropout between (table 5).
"""
Axis = Literal["time", "channel"]
Gate = Literal["after-convolution", "before-convolution"]
Kernel = Literal[1, 3, 5, 7, 9]
QUALITY = "quality"
"""How the role of the quality-aware series begins; the other one is the semantic-aware."""
REDUCED = 128  # width of the rows that the recurrent layer gets, and of its state: those of VSFA
STATE = 32


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What the network is made of; what is said to be assumed, the paper does not tell."""

    width: int
    """d, to which both series are brought."""
    wiring: Wiring
    norm_axis: Axis
    """Over what a series is normalised: its rows, channel by channel (instance normalisation), or
    its channels, row by row.  Assumed: "time"."""
    shared_guides: bool
    """Whether both directions have the same scale and shift layers.  Assumed: not."""
    gate_reduction: int
    """Of the two layers of a gate: d to d / reduction to d.  Assumed: 16."""
    shared_gates: bool
    """Whether quality saliency and content variation have the same gate.  Assumed: not."""
    kernel: Kernel
    """Rows that a temporal convolution sees.  Assumed: 3."""
    shared_convolutions: bool
    """Whether both branches have the same temporal convolution.  Assumed: not."""
    gate: Gate
    """When rows are multiplied.  Assumed: after the convolution."""
    bias: bool
    """Of all layers but the recurrent one.  Assumed: there is one."""
    dropout: float
    """Of "concat-mlp", whose layer is assumed to be as wide as d.  Assumed: 0.5."""


@dataclass(kw_only=True, eq=False, repr=False)
class Cagi(SequenceHead):
    """A2INet's network on a quality-aware and a semantic-aware series; absolute error, rank loss.

    The roles are `quality`, or one that begins so, such as `quality-540`, and any other one, such
    as `semantic` (S+S: `quality.stages` and `semantic.stages`) or `motion` (S+M: `quality.stages`
    and `slowfast.blocks`).  Of the longer
    series the rows of the other's frames are taken.  Options that stand in `Layers` as well are
    explained there.

    The defaults are for a processor: d = 256, and a learning rate for fewer epochs.  `paper` holds
    those of the paper, d = 1024, and what it leaves open: 100 epochs, no decay, no standardisation.

    Parameters:
        roles: which of the table's features are seen, in this order; None for all.
        rank_weight: eta of equation 9.
        pooling: of the scores of rows.
    """

    name: ClassVar[str] = "cagi"
    stackable: ClassVar[bool] = False
    paper: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "width": 1024,
            "standardise": False,
            "epochs": 100,
            "patience": 100,
            "learning_rate": 2e-5,
        }
    )

    wiring: Wiring = "full"
    width: PositiveInt = 256
    norm_axis: Axis = "time"
    shared_guides: bool = False
    gate_reduction: PositiveInt = 16
    shared_gates: bool = False
    kernel: Kernel = 3
    shared_convolutions: bool = False
    gate: Gate = "after-convolution"
    bias: bool = True
    dropout: Probability = 0.5
    pooling: Pooling = "hysteresis"
    rank_weight: NotNegative = 1.0
    align: Align = "frame"
    epochs: PositiveInt = 30
    patience: PositiveInt = 10
    batch_size: AtLeastTwo = 8
    learning_rate: Positive = 2e-4
    weight_decay: NotNegative = 0.0
    memory_gib: Positive = 4.0  # KoNViD-1k's 128 rows of S+S are 2.7

    def _series(self, table: FeatureTable) -> Series:
        self._check_roles(table.roles)
        return super()._series(table)

    def _check_roles(self, roles: Collection[str]) -> None:
        if self.wiring.startswith("concat"):
            return
        if len(roles) != 2 or sum(role.startswith(QUALITY) for role in roles) != 1:
            raise HeadError(
                f"{self.name}: the wiring {self.wiring!r} takes two roles, {QUALITY!r} and another "
                f"such as 'semantic' or 'motion'; got {', '.join(roles)}; name them in "
                "`features`, or choose two by `roles`"
            )

    def _network(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        self._check_roles(inputs)
        widths = {role: one.width for role, one in inputs.items()}
        layers = Layers(**{field.name: getattr(self, field.name) for field in fields(Layers)})
        return A2iNet(widths, layers, pooling=self.pooling, generator=generator)

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        loss = l1_loss(predicted, target)  # equation 6
        if self.rank_weight:
            loss = loss + self.rank_weight * margin_rank_loss(predicted, target)  # equations 7, 9
        return loss


class A2iNet(nn.Module):
    """The network of `Cagi`.

    Args of the constructor:
        widths: of a row, by role.
        layers: what the network is made of.
        pooling: of the scores of rows.
        generator: draws the weights, uniformly in +-1/sqrt(inputs of a layer), PyTorch's default.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        layers: Layers,
        *,
        pooling: Pooling,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.probability = layers.dropout
        self.pooling = POOLINGS[pooling]
        width, bias = layers.width, layers.bias
        self.cagi = self.mlp = self.catm = None
        with torch.device("meta"):  # as in `start_uniform`
            fused = width
            if layers.wiring == "concat":
                fused = sum(widths.values())
            elif layers.wiring == "concat-mlp":
                self.mlp = nn.Linear(sum(widths.values()), width, bias)
            else:
                self.cagi = Interaction(widths, layers)
            if not layers.wiring.startswith("concat") and layers.wiring != "without-catm":
                self.catm = TemporalModelling(layers)
                fused = 2 * width
            self.reduce = nn.Linear(fused, REDUCED, bias)
            self.score = nn.Linear(STATE, 1, bias)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv1d):
                start_uniform(layer, layer.weight[0].numel() ** -0.5, generator=generator)
        self.recurrent = GruLayer(REDUCED, STATE, generator=generator)

    def rows(self, batch: PaddedBatch) -> Tensor:
        """[b, t]: the score of every row; behind a video's last it means nothing."""
        real = batch.mask.unsqueeze(2)
        rows = batch.rows if self.cagi is None else self.cagi(batch, real)
        if self.mlp is not None:
            rows = relu(self.mlp(rows))
            if self.training:
                rows = dropout(rows, self.probability, batch.noise)
        if self.catm is not None:
            rows = self.catm(rows, real)
        return self.score(self.recurrent.behind(self.reduce, rows))[..., 0]

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b]."""
        return self.pooling(self.rows(batch), batch.mask)


class Interaction(nn.Module):
    """Cross-aware guided interaction, CAGI: what each series says of the other, row by row, then
    attention over all rows of a video (layers 1 to 7).
    """

    def __init__(self, widths: Mapping[str, int], layers: Layers) -> None:
        super().__init__()
        width, bias = layers.width, layers.bias
        self.aware, self.other = sorted(widths, key=lambda role: not role.startswith(QUALITY))
        self.quality = nn.Linear(widths[self.aware], width, bias)
        self.semantic = nn.Linear(widths[self.other], width, bias)
        self.wiring = layers.wiring
        count = 2 if self._both_ways and not layers.shared_guides else 1
        self.guides = nn.ModuleList(Guide(layers) for _ in range(count))
        fused = 2 * width if self._both_ways else width
        self.attend = nn.Linear(fused, 3 * fused, bias)  # query, key and value
        self.reduce = nn.Linear(fused, width, bias)

    @property
    def _both_ways(self) -> bool:
        return self.wiring in ("full", "without-catm")

    def forward(self, batch: PaddedBatch, real: Tensor) -> Tensor:
        """[b, t, d].

        Args:
            batch: with both roles.
            real: [b, t, 1] bool, true for the rows of a video, false behind them.
        """
        quality = self.quality(batch.series(self.aware))
        semantic = self.semantic(batch.series(self.other))
        if self._both_ways:
            to_semantic = self.guides[0](quality, semantic, real)
            to_quality = self.guides[-1](semantic, quality, real)
            guided = torch.cat([to_semantic, to_quality], dim=2)
        elif self.wiring.endswith("q-to-s"):
            guided = self.guides[0](quality, semantic, real)
        else:
            guided = self.guides[0](semantic, quality, real)
        query, key, value = self.attend(guided).chunk(3, dim=2)
        # Equation 5: softmax(Q K' / sqrt(2 d)) V, and what was there is added.
        seen = scaled_dot_product_attention(query, key, value, attn_mask=real.transpose(1, 2))
        return self.reduce(seen + guided)


class Guide(nn.Module):
    """One series, normalised, and deformed to another: AdaIN, FGIN or one half of CGIN."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.axis = layers.norm_axis
        self.keeps = not layers.wiring.startswith("fgin")
        width = layers.width
        # Scale and shift, gamma and theta.
        learns = not layers.wiring.startswith("adain")
        self.affine = nn.Linear(width, 2 * width, layers.bias) if learns else None

    def forward(self, one: Tensor, other: Tensor, real: Tensor) -> Tensor:
        """`one` deformed to `other`, [b, t, d] like both."""
        mean, deviation = moments(one, real, self.axis)
        normed = (one - mean) / deviation
        if self.affine is None:  # equation 1
            mean, deviation = moments(other, real, self.axis)
            return deviation * normed + mean
        scale, shift = self.affine(other).chunk(2, dim=2)
        deformed = scale * normed + shift  # equation 2
        return deformed + normed if self.keeps else deformed  # equation 3, whose constant is 1


def moments(values: Tensor, real: Tensor, axis: Axis) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation: [b, 1, d] over the rows of a video, or [b, t, 1] over channels.

    The deviation is sqrt(variance + 1e-5) with the variance divided by the count, as in PyTorch's
    instance norm, so that a video of one row has one.

    Args:
        values: [b, t, d].
        real: [b, t, 1].
        axis: "time" or "channel".
    """
    if axis == "channel":
        variance, mean = torch.var_mean(values, dim=2, correction=0, keepdim=True)
    else:
        count = real.sum(dim=1, keepdim=True)
        mean = (values * real).sum(dim=1, keepdim=True) / count
        variance = ((values - mean).square() * real).sum(dim=1, keepdim=True) / count
    return mean, (variance + 1e-5).sqrt()


class TemporalModelling(nn.Module):
    """Cross-aware temporal modelling, CATM: rows weighted by what is extreme in a video and by what
    changes in it (layers 8 to 11, figure 3).
    """

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        width, inner = layers.width, max(1, layers.width // layers.gate_reduction)
        self.gate_first = layers.gate == "before-convolution"
        self.gates = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, inner, layers.bias),
                nn.ReLU(),
                nn.Linear(inner, width, layers.bias),
                nn.Sigmoid(),
            )
            for _ in range(1 if layers.shared_gates else 2)
        )
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, layers.kernel, padding="same", bias=layers.bias)
            for _ in range(1 if layers.shared_convolutions else 2)
        )

    def forward(self, rows: Tensor, real: Tensor) -> Tensor:
        """[b, t, 2 d] of [b, t, d]: quality saliency, then content variation."""
        largest = rows.masked_fill(~real, -torch.inf).amax(dim=1)
        rows = rows * real  # the convolution sees zeros behind a video, as at its end
        saliency = self._branch(0, rows, self.gates[0](largest))
        variation = self._branch(-1, rows, self.gates[-1](_unbiased_deviation(rows, real)))
        return torch.cat([saliency, variation], dim=2)

    def _branch(self, which: int, rows: Tensor, gate: Tensor) -> Tensor:
        gate = gate.unsqueeze(1)
        if self.gate_first:
            rows = rows * gate
        convolved = self.convolutions[which](rows.transpose(1, 2)).transpose(1, 2)
        return convolved if self.gate_first else convolved * gate


def _unbiased_deviation(rows: Tensor, real: Tensor) -> Tensor:
    """[b, d] of [b, t, d], whose rows are 0 where they are not real; 1e-4 for a video of one row.

    1e-8 inside the root keeps its gradient finite.
    """
    count = real.sum(dim=1)
    mean = (rows.sum(dim=1) / count).unsqueeze(1)
    squares = ((rows - mean).square() * real).sum(dim=1)
    return (squares / (count - 1).clamp(min=1) + 1e-8).sqrt()
