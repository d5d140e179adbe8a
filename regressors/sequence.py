"""Heads that learn from whole series with PyTorch: what they share."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from vqbank.regressors.alignment import Alignment
from vqbank.regressors.base import MOST_MODEL_BYTES
from vqbank.regressors.batches import Input, Series, inputs_of, taken_of
from vqbank.regressors.card import CARD, model_of, refuse_link, seen_by, seen_is_known
from vqbank.regressors.checkpoint import SECOND, remove
from vqbank.regressors.companions import FOLDER, Companions
from vqbank.regressors.ensemble import Ensemble, most_bytes
from vqbank.regressors.holdout import hold_out_scenes
from vqbank.regressors.layers import frozen_sha256, learnt
from vqbank.regressors.network_parameters import NetworkParameters
from vqbank.regressors.parallel import train_all
from vqbank.regressors.plan import (
    Fold,
    Method,
    RowChoice,
    Trained,
)
from vqbank.regressors.published import read_official
from vqbank.regressors.start import begin
from vqbank.regressors.training import scores
from vqbank.store.beside import Beside, pack
from vqbank.store.errors import HeadError, VqbankError, in_words
from vqbank.store.schema import FeatureSpec, Video
from vqbank.store.table import FeatureTable


@dataclass(kw_only=True, eq=False, repr=False)
class SequenceHead(NetworkParameters):
    """A PyTorch network on the series of a video.

    A head says what its network is and by which loss it learns; all else is done here and in
    `training`: alignment of roles, padding, standardisation, batches, the loop, held-out scenes,
    several runs, a line to MOS units, files, and training many at once.  To write one:

        @dataclass(kw_only=True, eq=False, repr=False)
        class Mine(SequenceHead):
            name: ClassVar[str] = "mine"
            width: PositiveInt = 32
            epochs: PositiveInt = 100
            ...  # and the others of `NetworkParameters` that have no value

            def _network(self, inputs, generator):
                width = sum(one.width for one in inputs.values())
                return MyNetwork(width, self.width, generator=generator)

            def _loss(self, predicted, target):
                return plcc_loss(predicted, target)

    and put it into HEADS, or declare it as an entry point `vqbank.heads` of a package of its own.
    The network is a plain
    `nn.Module` of one member, whatever the number trained together: `forward(batch)` takes a
    `batches.PaddedBatch` (values by role [b, t, *shape], mask [b, t], noise) and gives scores [b].
    Values come in the dtype in which they are banked, if they are not standardised: `batch.rows`
    and `batch.series(role)` give them laid flat and in float32.

    - All reductions over t must look at `mask`: padding, order and company change no score by more
      than 1e-5.  Rows behind a video's last are finite, and mean nothing.
    - Every parameter is drawn from `generator` (`layers.linear`, `layers.start_uniform`), never
      from the global one.
    - Dropout is `layers.dropout(values, p, batch.noise)` while `self.training`.
    - What is used as it is, a tower with weights of its own, stands in `layers.Frozen`, or has
      `requires_grad=False`: it is neither trained nor kept, and no generator draws it.
    - What a bank has beside a role's feature, `inputs[role].beside` gives: the tail behind a cut,
      tokens of prompts, text banks.  It is used as it is.
    - Running statistics (batch normalisation) are kept as weights are.  A head that has any says
      `stackable = False`: what fills up the batches of a stack would count.
    - `_row_choice` says which rows of a video a step sees, where these are not all.
    - `_own_rows` names roles that have rows of their own, any number of them: `batch.values[role]`
      is then [b, its t, *shape], and `batch.mask_of(role)` says which are real.
    - Of a stackable head, `forward` runs under `torch.func.vmap`: no `.item()`, no branch on a
      value, no boolean indexing, no `nn.GRU` (`layers.GruLayer` instead).
    """

    suffix: ClassVar[str] = ".safetensors"
    unkept: ClassVar[frozenset[str]] = frozenset({"device", "start"})
    min_videos: ClassVar[int] = 10
    has_epochs: ClassVar[bool] = True
    stackable: ClassVar[bool] = True
    """Whether several may be trained as one stacked network, or each in a process of its own: large
    networks gain nothing from a stack and fill memory."""

    ensemble_: Ensemble = field(init=False)
    """The networks that were trained, one per run."""
    packed_: Path | None = field(init=False, default=None)
    """Where a packed head has what its networks stand on.  No parameter."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a head of before, which was told the widths of rows alone.

        Raises:
            HeadError: saying what its `_network` is told.
        """
        super().__init_subclass__(**options)
        if "widths" in signature(cls._network).parameters:
            raise HeadError(
                f"{cls.__module__}.{cls.__qualname__}._network takes `widths`, as heads did once; "
                "it is told `inputs`, by role the shape and dtype of a row: `inputs[role].width` "
                "is what the width was (docs/write-a-head.md)"
            )

    @abstractmethod
    def _network(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        """A new network.

        Args:
            inputs: shape and dtype of a row, by role, in the order of roles.
            generator: draws its start.
        """

    def _begun(self, inputs: Mapping[str, Input], generator: torch.Generator) -> nn.Module:
        """A new network that is trained; `_network`, where its start is drawn and nothing more.

        Arguments as there.  What is taken of a bank here alone is not asked for by predictions.
        """
        return self._network(inputs, generator)

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

    @property
    def _row_choice(self) -> RowChoice | Mapping[str, RowChoice] | None:
        """Which rows of a video a step sees, where these are not all; see `plan.RowChoice`.

        Of the grid, or by role, where roles have rows of their own.  A function of its module, or
        `functools.partial` of one: it goes to other processes.
        """
        return None

    @property
    def _own_rows(self) -> tuple[str, ...]:
        """Roles whose rows are no rows of the first one's; see `alignment.Alignment.own`."""
        return ()

    @property
    def _alignment(self) -> Alignment:
        return Alignment(self.align, self.slots, self._own_rows)

    def _choices(self, roles: Sequence[str]) -> Mapping[str, RowChoice]:
        """By role, which rows a step sees; the grid is that of the first."""
        choice = self._row_choice
        if choice is None:
            return {}
        return {roles[0]: choice} if callable(choice) else choice

    def _stacks(self, inputs: Mapping[str, Input]) -> bool:
        """Whether networks on such rows are trained as one stack."""
        return self.stackable

    def trains_together(self, table: FeatureTable) -> bool:
        """Where the networks stack."""
        return self._stacks(self._inputs(self._chosen(table).specs))

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
        inputs = heads[0]._inputs(table.specs, heads[0]._beside(table))
        begun = begin(heads[0], table.specs, inputs)
        frozen = frozen_sha256(heads[0]._network(inputs, torch.Generator()))
        stood_on: dict[str, Any] = taken_of(inputs)
        if frozen is not None:
            stood_on["frozen_sha256"] = frozen
        for head in heads:
            head.record_ = stood_on
            head.packed_ = None
        folds = [
            fold._replace(start=start)
            for head, own, aside in parts
            for fold, start in zip(head._folds(table, mos, own, aside), begun.starts, strict=True)
        ]
        trained = heads[0]._trained(series, folds)
        chosen = trained
        if heads[0].selection == "refit":
            pairs = zip(folds, trained, strict=True)
            trained = heads[0]._trained(
                series, [heads[0]._again(mos, *pair) for pair in pairs], SECOND
            )
        if heads[0].checkpoint is not None:
            remove(heads[0].checkpoint)
        series.hold(every)  # where it fits: once for all heads
        for number, (head, own, aside) in enumerate(parts):
            runs = slice(number * head.runs, (number + 1) * head.runs)
            whose = (
                "the validation part of the split"
                if len(aside)
                else f"{head.validation_fraction:.0%} of the training scenes"
            )
            if head.selection == "fixed":
                own = np.setdiff1d(own, aside)
            told = head.record_
            head._take(series, own, mos[own], trained[runs])
            head._tell(chosen[runs], folds[runs], len(own), whose)
            head.record_ = {**told, **head.record_, **begun.record}
            head.specs_ = dict(table.specs)

    def _trained(self, series: Series, folds: Sequence[Fold], which: str = "") -> list[Trained]:
        """Networks of this head, one per fold; `which` tells their checkpoint from others."""
        checkpoint = self.checkpoint
        return train_all(
            series,
            folds,
            self._method(series),
            stacks=self._stacks(self._inputs(series.table.specs)),
            watch=self.watch,
            checkpoint=checkpoint and checkpoint.with_name(f"{checkpoint.name}{which}"),
            processes=self.processes,
        )

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
        """[runs, n]: what each network says, on its own scale.

        Raises:
            HeadError: if the weights that it uses and did not learn are not those of its training.
        """
        beside = self._beside(series.table, self.record_.get("companions", {}))
        inputs = self._inputs(series.table.specs, beside)
        module = self._network(inputs, torch.Generator())
        self._check_fits(module, networks)
        known = self.record_.get("frozen_sha256")
        if known is not None and frozen_sha256(module) != known:
            raise HeadError(
                f"{self.name}: its frozen weights are not those that it was trained with; use "
                "these, or train it again"
            )
        return scores(
            series,
            rows,
            module=module.to(series.device),
            plan=self._plan,
            choose=self._choices(series.table.roles),
            state={name: value.to(series.device) for name, value in networks.state.items()},
            scalings=[scaling and scaling.to(series.device) for scaling in networks.scalings],
            stacked=self._stacks(inputs),
        )

    def _check_fits(self, module: nn.Module, networks: Ensemble) -> None:
        """Compare what was kept with what a network learns on these features.

        Raises:
            HeadError: naming what differs: the tail is one of another size.
        """
        wanted = {name: tuple(value.shape) for name, value in learnt(module).items()}
        kept = {name: tuple(value.shape[1:]) for name, value in networks.state.items()}
        if wanted != kept:
            name = min(one for one in wanted | kept if wanted.get(one) != kept.get(one))
            raise HeadError(
                f"{self.name}: its networks are not those of these features: {name} has shape "
                f"{kept.get(name, 'none')}, not {wanted.get(name, 'any')}"
            )

    def _inputs(
        self,
        specs: Mapping[str, FeatureSpec],
        beside: Mapping[str, Companions] = MappingProxyType({}),
    ) -> dict[str, Input]:
        """What the network is told of the rows that it gets of these features.

        Args:
            specs: by role.
            beside: by role, what their banks have beside them; without it networks that stand on
                any cannot be made.
        """
        inputs = inputs_of(specs, self._alignment, average=self._average)
        return {
            role: Input(
                one.shape,
                torch.float32 if self.standardise else one.dtype,
                beside.get(role, one.beside),
            )
            for role, one in inputs.items()
        }

    def _beside(
        self,
        table: FeatureTable,
        known: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    ) -> dict[str, Companions]:
        """What lies beside the features of a table; a packed head looks into its own folder first.

        Args:
            table: of the features.
            known: by role, sha256 of what the head was trained with; none while it is trained.
        """
        found = {}
        for role, spec in table.specs.items():
            banks = [bank for bank in (self.packed_, table.bank(role)) if bank is not None]
            places = tuple(Beside(bank, spec.key) for bank in banks)
            found[role] = Companions(f"{role} = {spec.key}", places, known.get(role, {}))
        return found

    @property
    def averages_rows(self) -> bool:
        """Whether its networks get one row per video, the mean of its rows."""
        return self._average

    def depends_on(self) -> dict[str, str]:
        """The networks that training starts from, if it does not draw its own."""
        return {} if self.start is None else {"start": model_of(Path(self.start))}

    def stands_on(self, table: FeatureTable) -> Mapping[str, Any]:
        """Towers behind a cut, tokens and text banks, by role."""
        chosen = self._chosen(table)
        beside = self._beside(chosen)
        if not any(one.places for one in beside.values()):
            return {}
        inputs = self._inputs(chosen.specs, beside)
        self._network(inputs, torch.Generator())
        return taken_of(inputs)

    def seen_before(self, ids: Sequence[str]) -> list[str]:
        """Those that the head in `start` was trained on, or any that it was started from itself."""
        return [] if self.start is None else seen_by(Path(self.start), ids)

    def knows_what_was_seen(self) -> bool:
        """Unless a head in the chain of `start` is of published weights, or of long ago."""
        return self.start is None or seen_is_known(Path(self.start))

    def held_out(self, videos: Sequence[Video]) -> list[NDArray[np.bool_]]:
        """Whole scenes, `validation_fraction` of them, drawn by the seed of each run.

        Args:
            videos: n, that no protocol sets any aside of.

        Returns:
            A mask [n] for each run, true for held-out videos; none where the last epoch is kept.

        Raises:
            HeadError: if the videos have fewer than two scenes.
        """
        if self.selection == "fixed":
            return []
        return [
            hold_out_scenes(
                videos, fraction=self.validation_fraction, rng=np.random.default_rng(seed)
            )
            for seed in range(self.seed, self.seed + self.runs)
        ]

    def _series(self, table: FeatureTable) -> Series:
        return Series(
            table,
            self._alignment,
            average=self._average,
            budget_bytes=self._budget_bytes,
            device=_usable(self.device),
            in_part=bool(self._choices(table.roles)) and not self.standardise,
        )

    def _folds(
        self,
        table: FeatureTable,
        mos: NDArray[np.float64],
        rows: NDArray[np.int64],
        validation: NDArray[np.int64],
    ) -> list[Fold]:
        """One per run, on these rows of the table; held out is `validation`, if it has any."""
        seeds = range(self.seed, self.seed + self.runs)
        if len(validation):
            every = [np.isin(rows, validation)] * self.runs
        else:
            every = self.held_out([table.videos[row] for row in rows.tolist()])
        if self.selection == "fixed":
            fit = np.setdiff1d(rows, validation)
            return [self._fold(mos, fit, fit[:0], seed, epochs=self.epochs) for seed in seeds]
        return [
            self._fold(mos, rows[~held], rows[held], seed)
            for seed, held in zip(seeds, every, strict=True)
        ]

    def _fold(
        self,
        mos: NDArray[np.float64],
        fit: NDArray[np.int64],
        held: NDArray[np.int64],
        seed: int,
        *,
        epochs: int | None = None,
    ) -> Fold:
        if len(fit) == 0:
            raise HeadError(f"{self.name}: all {len(held)} videos are for validation")
        low, high = mos[fit].min(), mos[fit].max()
        # Of constant rows the engine says that they are; they are not divided by nothing.
        targets = torch.from_numpy((mos - low) / (high - low or 1.0)).float()
        return Fold(fit, held, targets, seed, epochs)

    def _again(self, mos: NDArray[np.float64], fold: Fold, trained: Trained) -> Fold:
        """On all rows of a fold, for as many epochs as its held-out rows chose."""
        every = np.sort(np.concatenate([fold.fit, fold.held]))
        again = self._fold(mos, every, every[:0], fold.seed, epochs=trained.epoch)
        return again._replace(start=fold.start)

    def _method(self, series: Series) -> Method:
        """For processes too: of a clone, which has nothing of this machine's `watch`."""
        own, identity = clone(self), self._identity(series.table)
        inputs = self._inputs(series.table.specs, self._beside(series.table))
        network = partial(own._begun, inputs)
        return Method(network, own._loss, self._plan, identity, own._choices(series.table.roles))

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
    ) -> None:
        """Keep the networks that were trained, one per run, with the line to the unit of the MOS.

        Args:
            series: where the videos are.
            rows: of its table, that were fitted or held out.
            mos: [len(rows)].
            trained: one per run.
        """
        states = [one.state for one in trained]
        networks = Ensemble.of(
            {name: torch.stack([state[name].cpu() for state in states]) for name in states[0]},
            [one.scaling and one.scaling.to(torch.device("cpu")) for one in trained],
        )
        self.ensemble_ = networks.fitted(self._raw(networks, series, rows), mos, self.combine)

    def _tell(
        self, chosen: Sequence[Trained], folds: Sequence[Fold], count: int, held_out: str
    ) -> None:
        """Say how the networks were trained.

        Args:
            chosen: of each run, the training whose epoch was taken.
            folds: of each run, that of this training.
            count: of videos that could be seen.
            held_out: what the held-out rows are, in words.
        """
        judged = self.selection != "fixed"
        self.record_ = {
            "split": {
                "training_videos": count,
                "held_out_videos": [len(fold.held) for fold in folds] if judged else [],
                "held_out_by_seed": [fold.seed for fold in folds],
            },
            "metrics": {
                "epoch": [one.epoch for one in chosen],
                "held_out_srcc": [one.srcc for one in chosen],
            },
        }
        if self.selection == "fixed":
            self.selection_ = f"the last of {self.epochs} epochs on all {count} training videos"
            return
        epochs = ", ".join(str(one.epoch) for one in chosen)
        counts = ", ".join(str(len(fold.held)) for fold in folds)
        self.selection_ = (
            f"epoch {epochs} of {self.epochs} by SRCC on {counts} of {count} training videos, "
            f"{held_out}"
        )
        if self.selection == "refit":
            self.selection_ += f"; trained again for as many on all {count}"

    @classmethod
    def published(cls, weights: Path, table: FeatureTable, **parameters: Any) -> Self:
        """As `Head.published`; where parameters say nothing else, they are those of the paper.

        What weights are already, one network on features as they are, goes without saying.
        """
        as_they_are = {"standardise": False, "runs": 1, "combine": "mean"}
        head = cls(**{**cls.paper, **parameters, **as_they_are})
        head.check_parameters()
        head.specs_ = dict(table.specs)
        inputs = head._inputs(table.specs, head._beside(table))
        state = read_official(
            weights, head._from_official, lambda: head._shapes(weights, inputs), head=cls.name
        )
        head.record_ = taken_of(inputs)
        head.ensemble_ = Ensemble.of({name: own[None] for name, own in state.items()}, [None])
        head.selection_ = f"published weights, {weights.name}, not fitted"
        return head

    def _from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The network's parameters, of an official state dict."""
        raise HeadError(f"no official weights of {self.name} are known")

    def learnt_shapes(self, inputs: Mapping[str, Input]) -> dict[str, tuple[int, ...]]:
        """Of what one network on such rows learns, by name; without memory for it."""
        with torch.device("meta"):
            network = self._network(inputs, torch.Generator())
        return {name: tuple(value.shape) for name, value in learnt(network).items()}

    def _shapes(self, path: Path, inputs: Mapping[str, Input]) -> dict[str, tuple[int, ...]]:
        """As `learnt_shapes`.

        Raises:
            HeadError: naming `path`, if no network has the widths that the card of a head says.
        """
        try:
            return self.learnt_shapes(inputs)
        except (RuntimeError, TypeError, OverflowError, ValueError) as error:
            raise HeadError(f"{path}: no {self.name} has such widths: {in_words(error)}") from error

    def _shapes_by_card(self, path: Path) -> dict[str, tuple[int, ...]] | None:
        """For the features that a card names, as `_shapes`.

        None where networks stand on what lies beside these: it is known when there are rows to
        predict, and compared then.
        """
        if "companions" in self.record_:
            return None
        return self._shapes(path, self._inputs(self.specs_))

    def _most_model_bytes(self) -> int:
        shapes = self._shapes_by_card(Path(CARD))
        if shapes is None:
            return MOST_MODEL_BYTES
        return min(MOST_MODEL_BYTES, most_bytes(self.runs, shapes, _widths(self.specs_)))

    def _model_bytes(self) -> bytes:
        return self.ensemble_.content()

    def _restore(self, content: bytes, path: Path) -> None:
        self.ensemble_ = Ensemble.read(
            content,
            path,
            runs=self.runs,
            shapes=self._shapes_by_card(path),
            widths=_widths(self.specs_),
        )
        packed = path.parent / FOLDER
        refuse_link(path.parent, packed)
        self.packed_ = packed if packed.is_dir() else None

    def pack(self, folder: Path, table: FeatureTable) -> bool:
        """As `Head.pack`: tails, prompts' tokens and text banks."""
        self._check_fitted()
        taken = self.record_.get("companions", {})
        places = {}
        for role, names in taken.items():
            bank = table.bank(role)
            if bank is None:
                raise HeadError(f"{self.name}: the rows of {role} come from no bank to pack from")
            texts = [name.removeprefix("text/") for name in names if name.startswith("text/")]
            places[Beside(bank, self.specs_[role].key)] = texts
        if not places:
            return False
        try:
            pack(places, folder / FOLDER)
        except VqbankError as error:
            raise HeadError(
                f"{folder} cannot take along what the head stands on: {error}"
            ) from error
        return True


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
