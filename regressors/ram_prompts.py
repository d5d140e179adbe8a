"""The first stage of RAM-VQA: words of quality, learnt from what restoration makes of videos."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import normalize

from vqbank.regressors.alignment import Align
from vqbank.regressors.batches import Input, PaddedBatch
from vqbank.regressors.drawing import EMBEDDING_DEVIATION
from vqbank.regressors.network_parameters import AtLeastTwo, NotNegative, Positive, Selection
from vqbank.regressors.plan import Schedule
from vqbank.regressors.prompt_learner import PromptLearner
from vqbank.regressors.score_pooling import POOLINGS
from vqbank.regressors.sequence import SequenceHead
from vqbank.store.errors import HeadError
from vqbank.store.schema import FeatureSpec
from vqbank.store.table import FeatureTable
from vqbank.store.text import TextBank, text_spec

Context = Literal["words", "random", "fixed"]
"""What of a prompt is learnt (table IV): all but a word (*partial*), all, or nothing."""
CONTEXT = 16
"""N, tokens of a prompt before its word, as CoOp has them; the paper does not say how many."""
LEVELS = (2, 3, 5)


def _levels(words: list[str]) -> list[str]:
    if len(words) not in LEVELS or len(set(words)) < len(words):
        raise ValueError("words of two, three or five levels, each another, the best one first")
    return words


@dataclass(kw_only=True, eq=False, repr=False)
class RamPrompts(SequenceHead):
    """RAM-VQA's prompt learning (IEEE TIP 2026): texts that tell tiers of restoration apart.

    Its role is `tiers.embedding`, whose tiers are the supervision: scores of the videos need not be
    there.  The texts that it ends with become the text bank `ram-prompts.text`, the best level
    first, which the head `ram` names.  Of two levels the middle tier is left out; five have, beside
    the tiers, what lies half way between neighbours.

    As a head it says how much the original is like the best level rather than the others.  The
    paper gives AdamW with 1e-5 along a cosine; epochs and batches, of which it says nothing, are
    10 and 32.

    Parameters:
        words: of the levels, the best one first; in another order prompts learn to be reversed.
        context: what of a prompt is learnt.
        scale: what cosines are multiplied by, to give logits; 1 as printed, 100 as in CLIP.
        text: name of the text bank that is left, where a bank has several.
    """

    name: ClassVar[str] = "ram-prompts"
    stackable: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    paper: ClassVar[Mapping[str, Any]] = MappingProxyType({"learning_rate": 1e-5, "scale": 1.0})

    words: Annotated[list[str], AfterValidator(_levels)] | None = None
    context: Context = "words"
    scale: Positive = 100.0
    text: Annotated[str, Field(pattern=r"^[\w-]+\.[\w-]+$")] = "ram-prompts.text"
    align: Align = "repeat"
    epochs: PositiveInt = 10
    patience: PositiveInt = 10
    batch_size: AtLeastTwo = 32
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 0.0
    schedule: Schedule = "cosine"
    standardise: bool = False
    selection: Selection = "fixed"

    @property
    def levels(self) -> list[str]:
        """Words of the levels, the best one first."""
        return ["excellent", "mediocre", "terrible"] if self.words is None else self.words

    def check_parameters(self) -> None:
        """As every head; and texts of one run are kept."""
        super().check_parameters()
        if self.runs != 1 or self.standardise:
            raise HeadError(
                f"{self.name}: texts are those of one run, on embeddings as they are; leave runs "
                "and standardise out"
            )

    def _checked(self, table: FeatureTable, mos: NDArray[np.float64]) -> NDArray[np.float64]:
        if len(mos) == len(table) and np.isnan(mos).all():
            if self.selection != "fixed":
                raise HeadError(
                    f"{self.name}: videos without scores choose no epoch; leave selection "
                    f"{self.selection!r} out"
                )
            mos = np.arange(float(len(mos)))  # no scores: nothing is learnt from these
        return super()._checked(table, mos)

    def _network(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        if len(inputs) != 1 or len(next(iter(inputs.values())).shape) != 3:
            raise HeadError(
                f"{self.name} takes one role, tiers.embedding; got "
                + ", ".join(f"{role} {list(one.shape)}" for role, one in inputs.items())
            )
        (given,) = inputs.values()
        tokens = given.beside.tokens([self._prompt(word) for word in self.levels])
        last = {"words": CONTEXT, "random": CONTEXT + 1, "fixed": 0}[self.context]
        places = torch.arange(1, last + 1, device=tokens.device).expand(len(tokens), -1)
        learner = PromptLearner(given.beside.text_tail(), tokens, places)
        context = torch.empty(learner.context.shape)
        context.normal_(0.0, EMBEDDING_DEVIATION, generator=generator)
        learner.context = nn.Parameter(context)
        return OfTiers(learner, self.scale)

    def _prompt(self, word: str) -> str:
        """What stands in the bank's tail; of random prompts every token but the ends gives way."""
        if self.context == "fixed":
            return f"a photo of a {word} quality video"
        own = "excellent" if self.context == "random" else word
        return " ".join([*["X"] * CONTEXT, own])

    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        return predicted.mean()

    def tier_accuracy(self, table: FeatureTable) -> float:
        """The share of tiers whose likeliest level is their own, over all clips of all videos.

        Args:
            table: of tiers.
        """
        network = self._fitted_network(table)
        right = [
            (network.logits(torch.tensor(rows).float()[None]).argmax(dim=3)[0] == network.order)
            for rows in table.arrays(table.roles[0])
        ]
        return torch.cat(right).float().mean().item()

    def texts(self, table: FeatureTable) -> Sequence[tuple[FeatureSpec, TextBank]]:
        """The text bank of the levels, and its identity: what was learnt, from what."""
        rows = self._fitted_network(table).texts()
        learnt = next(iter(self.ensemble_.state.values())).contiguous().numpy()
        role = table.roles[0]
        identity = {
            "head": self.name,
            "context": self.context,
            "learnt": hashlib.sha256(learnt.tobytes()).hexdigest(),
            "from": table.specs[role].key,
        }
        values = rows.numpy()
        spec = text_spec(self.text, self.levels, values.shape[1], identity)
        return [(spec, TextBank(tuple(self.levels), values, self.scale))]

    def _fitted_network(self, table: FeatureTable) -> "OfTiers":
        table = self._chosen(table)
        beside = self._beside(table, self.record_.get("companions", {}))
        network = self._network(self._inputs(table.specs, beside), torch.Generator())
        assert isinstance(network, OfTiers)
        for name, value in network.named_parameters():
            if name in self.ensemble_.state:
                value.data = self.ensemble_.state[name][0]
        return network.eval().requires_grad_(False)


class OfTiers(nn.Module):
    """What texts say of tiers.

    Args of the constructor:
        learner: of the texts of all levels, the best one first.
        scale: of cosines.
    """

    def __init__(self, learner: PromptLearner, scale: float) -> None:
        super().__init__()
        self.learner = learner
        self.scale = scale

    @property
    def order(self) -> Tensor:
        """[k]: 0, 1, ...: which level is that of each tier."""
        return torch.arange(len(self.learner.prompts))

    def texts(self) -> Tensor:
        """[k, e] of unit length."""
        return normalize(self.learner(), dim=1)

    def logits(self, rows: Tensor) -> Tensor:
        """[b, t, k, k]: of every tier, the best one first, for every level.

        Args:
            rows: [b, t, tiers, frames, e], the worst tier first.
        """
        tiers = normalize(rows.mean(dim=3), dim=3).flip(2)
        count = len(self.learner.prompts)
        if count == 2:
            tiers = tiers[:, :, ::2]
        elif count == 5:
            between = normalize(tiers[:, :, 1:] + tiers[:, :, :-1], dim=3)
            best, middle, worst = tiers.unbind(2)
            upper, lower = between.unbind(2)
            tiers = torch.stack([best, upper, middle, lower, worst], dim=2)
        return self.scale * tiers @ self.texts().T

    def forward(self, batch: PaddedBatch) -> Tensor:
        """[b]: equation 1 of a video in training, else the best level's share of the original."""
        (rows,) = batch.values.values()
        said = self.logits(rows.float()).log_softmax(dim=3)
        if self.training:
            own = -said.diagonal(dim1=2, dim2=3).mean(dim=2)
        else:
            own = said[:, :, 0, 0].exp()
        return POOLINGS["mean"](own, batch.mask)
