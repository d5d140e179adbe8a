"""Heads that learn from whole series with PyTorch: what they share."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, PositiveInt
from sklearn.base import clone
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from vqbank.regressors.alignment import Align, Alignment
from vqbank.regressors.base import MOST_MODEL_BYTES, Head
from vqbank.regressors.batches import Series
from vqbank.regressors.card import CARD
from vqbank.regressors.ensemble import Combine, Ensemble, most_bytes
from vqbank.regressors.holdout import hold_out_scenes
from vqbank.regressors.member import Fold, Method, Plan, Trained
from vqbank.regressors.parallel import train_all
from vqbank.regressors.published import read_official
from vqbank.regressors.training import scores
from vqbank.store.errors import HeadError, in_words
from vqbank.store.schema import FeatureSpec, Video
from vqbank.store.table import FeatureTable

AtLeastTwo = Annotated[int, Field(ge=2)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
NotNegative = Annotated[FiniteFloat, Field(ge=0)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Probability = Annotated[FiniteFloat, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceHead(Head):
    """A PyTorch network on the series of a video.

    A head says what its network is and by which loss it learns; all else is done here and in
    `training`: alignment of roles, padding, standardisation, batches, the loop, held-out scenes,
    several runs, a line to MOS units, files, and training many at once.  To write one:

        @dataclass(kw_only=True, eq=False, repr=False)
        class Mine(SequenceHead):
            name: ClassVar[str] = "mine"
            width: PositiveInt = 32
            epochs: PositiveInt = 100
            ...  # and the other parameters that are below without a value

            def _network(self, widths, generator):
                return MyNetwork(sum(widths.values()), self.width, generator=generator)

            def _loss(self, predicted, target):
                return plcc_loss(predicted, target)

    and put it into HEADS and into the layers of `pyproject.toml`.  The network is a plain
    `nn.Module` of one member, whatever the number trained together: `forward(batch)` takes a
    `batches.PaddedBatch` (values by role [b, t, d] float32, mask [b, t], noise) and gives scores
    [b].

    - All reductions over t must look at `mask`: padding, order and company change no score by more
      than 1e-5.  Rows behind a video's last are finite, and mean nothing.
    - Every parameter is drawn from `generator` (`layers.linear`, `layers.start_uniform`), never
      from the global one.
    - Dropout is `layers.dropout(values, p, batch.noise)` while `self.training`.
    - No buffers that training changes: no batch normalisation.
    - Of a stackable head, `forward` runs under `torch.func.vmap`: no `.item()`, no branch on a
      value, no boolean indexing, no `nn.GRU` (`layers.GruLayer` instead).

    The fields below are parameters of every head; those without a value have one of the head's own.
    """

    suffix: ClassVar[str] = ".safetensors"
    unkept: ClassVar[frozenset[str]] = frozenset({"device"})
    min_videos: ClassVar[int] = 10
    has_epochs: ClassVar[bool] = True
    stackable: ClassVar[bool] = True
    """Whether several may be trained as one stacked network, or each in a process of its own: large
    networks gain nothing from a stack and fill memory."""

    epochs: PositiveInt
    patience: PositiveInt
    """Epochs without a better SRCC on held-out rows after which training ends."""
    batch_size: AtLeastTwo
    learning_rate: Positive
    weight_decay: NotNegative
    standardise: bool = True
    """Values of a row by their mean and deviation over the rows that are fitted."""
    align: Align
    """How roles come onto the rows of the first one; see `alignment`."""
    slots: PositiveInt | None = None
    """Rows that every video is cut or filled to, if any."""
    decay: Annotated[FiniteFloat, Field(gt=0, le=1)] = 1.0
    """By what the learning rate is multiplied every `decay_epochs`."""
    decay_epochs: PositiveInt = 10
    validation_fraction: Fraction = 0.2
    """Of the training scenes, held out to choose the epoch."""
    seed: Seed = 0
    runs: PositiveInt = 1
    """Networks, of seeds from `seed` on, each with held-out scenes of its own."""
    combine: Combine = "mean"
    memory_gib: Positive = 2.0
    """What the rows of features may take in memory; beyond it they are streamed from the bank, in
    windows of an eighth of this; predicted batches take another.  Of each process that evaluates;
    networks too large for a stack are trained in processes that share one more copy."""
    threads: PositiveInt = 1
    device: str = "cpu"
    """Of PyTorch.  Not kept with the head, which is loaded for the processor of any machine."""

    ensemble_: Ensemble = field(init=False)
    """The networks that were trained, one per run."""

    @abstractmethod
    def _network(self, widths: Mapping[str, int], generator: torch.Generator) -> nn.Module:
        """A new network.

        Args:
            widths: d of a row, by role, in the order of roles.
            generator: draws its start.
        """

    @abstractmethod
    def _loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """What training makes small.

        Args:
            predicted: [b], as the network gives them.
            target: [b], the MOS on a scale on which the fitted rows reach from 0 to 1.
        """

    @property
    def _average(self) -> bool:
        """Whether the network may get one row per video, the mean of its rows, instead of all."""
        return False

    def _chosen(self, table: FeatureTable) -> FeatureTable:
        """What the head takes of a table."""
        return table

    def _stacks(self, widths: Mapping[str, int]) -> bool:
        """Whether networks on rows of these widths are trained as one stack."""
        return self.stackable

    def trains_together(self, table: FeatureTable) -> bool:
        """Where the networks stack."""
        return self._stacks(_widths(self._chosen(table).specs))

    def shares(self, table: FeatureTable) -> bool:
        """Whether networks that are no stack can be trained in processes that share the table."""
        return self._series(self._chosen(table)).fits(np.arange(len(table)))

    @classmethod
    def fit_many(
        cls,
        heads: Sequence[Self],
        table: FeatureTable,
        mos: NDArray[np.float64],
        rows: Sequence[NDArray[np.int64]],
        validation: Sequence[NDArray[np.int64]] | None = None,
    ) -> list[Self]:
        """As `Head.fit_many`; heads that differ by seed alone are trained at the same time.

        As one stack where the head allows it and the videos fit the memory of one head, in
        processes, one per core, where it does not, else one after the other.

        Of heads that are trained at the same time, `watch`, `checkpoint` and `processes` of the
        first are those of all, and members are counted through.

        Raises:
            HeadError: as `fit` does, and if rows of a head repeat: a batch has a video once.
        """
        mos = np.asarray(mos, np.float64)
        aside = [np.empty(0, np.int64)] * len(rows) if validation is None else validation
        for head, own in zip(heads, rows, strict=True):
            if len(np.unique(own)) < len(own):
                raise HeadError(
                    f"{head.name}: rows repeat, {len(own)} are given of {len(np.unique(own))} "
                    "videos; give each once"
                )
        alike: dict[str, list[int]] = defaultdict(list)
        for number, (head, own) in enumerate(zip(heads, rows, strict=True)):
            head._checked(table.subset(own), mos[own])
            alike[repr({**head.get_params(), "seed": None})].append(number)
        for numbers in alike.values():
            with threadpool_limits(limits=1):  # as in `fit`
                cls._fit_alike(
                    [heads[n] for n in numbers],
                    table,
                    mos,
                    [rows[n] for n in numbers],
                    [aside[n] for n in numbers],
                )
        return list(heads)

    @classmethod
    def _fit_alike(
        cls,
        heads: Sequence[Self],
        table: FeatureTable,
        mos: NDArray[np.float64],
        rows: Sequence[NDArray[np.int64]],
        validation: Sequence[NDArray[np.int64]],
    ) -> None:
        """Heads that differ by seed alone, on their rows of a table, some of them set aside."""
        table = heads[0]._chosen(table)
        every = np.unique(np.concatenate(rows))
        series = heads[0]._series(table)
        if len(heads) > 1 and not series.fits(every):
            super().fit_many(heads, table, mos, rows, validation)
            return
        parts = list(zip(heads, rows, validation, strict=True))
        folds = [fold for head, own, aside in parts for fold in head._folds(table, mos, own, aside)]
        trained = train_all(
            series,
            folds,
            heads[0]._method(series),
            stacks=heads[0]._stacks(series.widths),
            watch=heads[0].watch,
            checkpoint=heads[0].checkpoint,
            processes=heads[0].processes,
        )
        series.hold(every)  # where it fits: once for all heads
        for number, (head, own, aside) in enumerate(parts):
            runs = slice(number * head.runs, (number + 1) * head.runs)
            whose = (
                "the validation part of the split"
                if len(aside)
                else f"{head.validation_fraction:.0%} of the training scenes"
            )
            head._take(series, own, mos[own], trained[runs], folds[runs], whose)
            head.specs_ = dict(table.specs)

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        self._fit_alike([self], table, mos, [np.arange(len(table))], [np.empty(0, np.int64)])
        return self.selection_

    def _fit_beside(
        self, table: FeatureTable, mos: NDArray[np.float64], validation: NDArray[np.int64]
    ) -> str:
        self._fit_alike([self], table, mos, [np.arange(len(table))], [validation])
        return self.selection_

    def _predict(self, table: FeatureTable) -> NDArray[np.float64]:
        raw = self._raw(self.ensemble_, self._series(table), np.arange(len(table)))
        return self.ensemble_.in_mos(raw, self.combine)

    def _raw(
        self, networks: Ensemble, series: Series, rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """[runs, n]: what each network says, on its own scale."""
        return scores(
            series,
            rows,
            module=self._network(series.widths, torch.Generator()).to(series.device),
            state={name: value.to(series.device) for name, value in networks.state.items()},
            scalings=[scaling and scaling.to(series.device) for scaling in networks.scalings],
            threads=self.threads,
            stacked=self._stacks(series.widths),
        )

    @property
    def _budget_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    @property
    def _plan(self) -> Plan:
        return Plan(
            epochs=self.epochs,
            patience=self.patience,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            decay_epochs=self.decay_epochs,
            decay=self.decay,
            standardise=self.standardise,
            threads=self.threads,
        )

    def held_out(self, videos: Sequence[Video]) -> list[NDArray[np.bool_]]:
        """Whole scenes, `validation_fraction` of them, drawn by the seed of each run.

        Args:
            videos: n, that no protocol sets any aside of.

        Returns:
            A mask [n] for each run, true for held-out videos.

        Raises:
            HeadError: if the videos have fewer than two scenes.
        """
        return [
            hold_out_scenes(
                videos, fraction=self.validation_fraction, rng=np.random.default_rng(seed)
            )
            for seed in range(self.seed, self.seed + self.runs)
        ]

    def _series(self, table: FeatureTable) -> Series:
        return Series(
            table,
            Alignment(self.align, self.slots),
            average=self._average,
            budget_bytes=self._budget_bytes,
            device=_usable(self.device),
        )

    def _folds(
        self,
        table: FeatureTable,
        mos: NDArray[np.float64],
        rows: NDArray[np.int64],
        validation: NDArray[np.int64],
    ) -> list[Fold]:
        """One per run, on these rows of the table; held out is `validation`, if it has any."""
        if len(validation):
            every = [np.isin(rows, validation)] * self.runs
        else:
            every = self.held_out([table.videos[row] for row in rows.tolist()])
        folds = []
        for seed, held in enumerate(every, self.seed):
            fit = rows[~held]
            if len(fit) == 0:
                raise HeadError(f"{self.name}: all {len(rows)} videos are for validation")
            low, high = mos[fit].min(), mos[fit].max()
            # Of constant rows the engine says that they are; they are not divided by nothing.
            targets = torch.from_numpy((mos - low) / (high - low or 1.0)).float()
            folds.append(Fold(fit, rows[held], targets, seed))
        return folds

    def _method(self, series: Series) -> Method:
        """For processes too: of a clone, which has nothing of this machine's `watch`."""
        own, identity = clone(self), self._identity(series.table)
        return Method(partial(own._network, series.widths), own._loss, self._plan, identity)

    def _identity(self, table: FeatureTable) -> dict[str, Any]:
        """What tells a checkpoint that it is of this training, folds aside."""
        return {
            "head": self.name,
            "parameters": {n: v for n, v in self.get_params().items() if n not in self.unkept},
            "keys": [[role, spec.key] for role, spec in table.specs.items()],
            "videos": [video.id for video in table.videos],
        }

    def _take(
        self,
        series: Series,
        rows: NDArray[np.int64],
        mos: NDArray[np.float64],
        trained: Sequence[Trained],
        folds: Sequence[Fold],
        held_out: str,
    ) -> None:
        """Keep the networks that were trained, and say how.

        Args:
            series: where the videos are.
            rows: of its table, that were fitted or held out.
            mos: [len(rows)].
            trained: one per run.
            folds: likewise.
            held_out: what the held-out rows are, in words.
        """
        states = [one.state for one in trained]
        networks = Ensemble.of(
            {name: torch.stack([state[name].cpu() for state in states]) for name in states[0]},
            [one.scaling and one.scaling.to(torch.device("cpu")) for one in trained],
        )
        self.ensemble_ = networks.fitted(self._raw(networks, series, rows), mos, self.combine)
        self.record_ = {
            "split": {
                "training_videos": len(rows),
                "held_out_videos": [len(fold.held) for fold in folds],
                "held_out_by_seed": [fold.seed for fold in folds],
            },
            "metrics": {
                "epoch": [one.epoch for one in trained],
                "held_out_srcc": [one.srcc for one in trained],
            },
        }
        epochs = ", ".join(str(one.epoch) for one in trained)
        counts = ", ".join(str(len(fold.held)) for fold in folds)
        self.selection_ = (
            f"epoch {epochs} of {self.epochs} by SRCC on {counts} of {len(rows)} training "
            f"videos, {held_out}"
        )

    @classmethod
    def published(cls, weights: Path, specs: Mapping[str, FeatureSpec], **parameters: Any) -> Self:
        """As `Head.published`; where parameters say nothing else, they are those of the paper.

        What weights are already, one network on features as they are, goes without saying.
        """
        as_they_are = {"standardise": False, "runs": 1, "combine": "mean"}
        head = cls(**{**cls.paper, **parameters, **as_they_are})
        head.check_parameters()
        head.specs_ = dict(specs)
        state = read_official(
            weights, head._from_official, lambda: head._shapes(weights), head=cls.name
        )
        head.ensemble_ = Ensemble.of({name: own[None] for name, own in state.items()}, [None])
        head.selection_ = f"published weights, {weights.name}, not fitted"
        return head

    def _from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's parameters, of an official state dict."""
        raise HeadError(f"no official weights of {self.name} are known")

    def _shapes(self, path: Path) -> dict[str, tuple[int, ...]]:
        """Of the parameters of one network, by name; without memory for them.

        Raises:
            HeadError: naming `path`, if no network has the widths that the card of a head says.
        """
        try:
            with torch.device("meta"):
                network = self._network(_widths(self.specs_), torch.Generator())
        except (RuntimeError, TypeError, OverflowError, ValueError) as error:
            raise HeadError(f"{path}: no {self.name} has such widths: {in_words(error)}") from error
        return {name: tuple(value.shape) for name, value in network.named_parameters()}

    def _most_model_bytes(self) -> int:
        shapes = self._shapes(Path(CARD))
        return min(MOST_MODEL_BYTES, most_bytes(self.runs, shapes, _widths(self.specs_)))

    def _model_bytes(self) -> bytes:
        return self.ensemble_.content()

    def _restore(self, content: bytes, path: Path) -> None:
        self.ensemble_ = Ensemble.read(
            content,
            path,
            runs=self.runs,
            shapes=self._shapes(path),
            widths=_widths(self.specs_),
        )


def _widths(specs: Mapping[str, FeatureSpec]) -> dict[str, int]:
    return {role: int(np.prod(spec.shape, dtype=np.int64)) for role, spec in specs.items()}


def _usable(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise HeadError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]}; "
            "use cpu, or another that this machine has"
        ) from error
    return device
