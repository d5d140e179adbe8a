"""What a head is: a scikit-learn estimator on a FeatureTable that can be saved without pickle."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from sklearn.base import BaseEstimator
from threadpoolctl import threadpool_limits

from vqbank.regressors.card import CARD, first_problem, read_card, read_model, write_head
from vqbank.regressors.progress import Watch
from vqbank.store.errors import HeadError, in_words
from vqbank.store.schema import FeatureSpec, Video
from vqbank.store.table import FeatureTable
from vqbank.store.text import TextBank
from vqbank.store.words import html_table

MOST_MODEL_BYTES = 2**31
"""A Gaussian process on 10,000 videos has 655 MB at 8,192 inputs, RAM-VQA's head of twelve layers
1,130 MB."""


class Head(BaseEstimator, ABC):  # type: ignore[misc]  # scikit-learn has no types
    """Features to MOS.

    A saved head is a folder of two files: what was learned, `model-HASH.*`, and everything else,
    `card.yaml`: the head's name, its parameters, the keys and specs of the features it was fitted
    on, how it was selected, and which model file belongs to it.

    Attributes:
        specs_: the features it was fitted on, by role, in the order of roles.
        selection_: the rule by which its hyper-parameters or its epoch were chosen.
    """

    name: ClassVar[str]
    """The name of the head in HEADS."""
    min_videos: ClassVar[int]
    """Fewest videos that can be fitted."""
    least_scenes: ClassVar[int] = 1
    """Fewest scenes of these videos: 2 of heads that choose by folds of scenes."""
    suffix: ClassVar[str]
    """The ending of the model file's name."""
    paper: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Parameters with which the head is that of its paper, where these are not the defaults."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """Further ones by name, such as those of official code that is not what the paper says."""

    has_epochs: ClassVar[bool] = False
    """Whether it is trained in epochs, of which one is chosen by SRCC on rows that it does not fit.

    Such heads hold rows out (`held_out`), or take those that a protocol sets aside; write a
    checkpoint while they are fitted; and tell every epoch to `watch`."""
    needs_scores: ClassVar[bool] = True
    """Whether it learns from scores; without them every score of a fit may be NaN."""
    unkept: ClassVar[frozenset[str]] = frozenset()
    """Parameters that belong to a machine, not to the head: its card does not hold them."""

    roles: list[str] | None = None
    """A parameter of every head that comes with vqbank: which of a table's features it sees, in
    this order; None for all."""
    watch: Watch | None = None
    """Told how far a fit is.  No parameter: it is neither kept with the head nor cloned."""
    checkpoint: Path | None = None
    """A file that a head with epochs writes while it is fitted, or None.  Fitting the same again
    goes on from there, and comes to the same; when fitting is done the file is removed.  No
    parameter."""
    processes: int | None = None
    """The most processes that networks are trained in; None for one per core.  No parameter."""

    specs_: dict[str, FeatureSpec]
    selection_: str
    record_: Mapping[str, Any] = MappingProxyType({})
    """What else the card tells of fitting, as JSON values: split, metrics."""

    def fit(
        self,
        table: FeatureTable,
        mos: NDArray[np.float64],
        *,
        validation: NDArray[np.int64] | None = None,
    ) -> Self:
        """Learn from training rows only.

        Args:
            table: n videos.
            mos: [n], in any unit; predictions come in the same.
            validation: rows that the protocol sets aside to choose the epoch by.  Heads without
                epochs leave them out.  None, or no rows: the head holds out rows of its own.

        Raises:
            HeadError: for a parameter out of its range, for fewer than `min_videos` videos, or a
                MOS that is missing, not finite, or the same for all.
        """
        table = self._chosen(table)
        mos = self._checked(table, mos)
        with threadpool_limits(limits=1):  # BLAS threads cost small fits 10 times what they give
            if validation is None or len(validation) == 0:
                self.selection_ = self._fit(table, mos)
            else:
                self.selection_ = self._fit_beside(table, mos, validation)
        self.specs_ = dict(table.specs)
        return self

    @classmethod
    def fit_many(
        cls,
        heads: Sequence[Self],
        table: FeatureTable,
        mos: NDArray[np.float64],
        rows: Sequence[NDArray[np.int64]],
        validation: Sequence[NDArray[np.int64]] | None = None,
    ) -> list[Self]:
        """Fit several heads of this class on rows of one table: splits, or seeds, or both.

        The same as `head.fit(table.subset(rows), mos[rows], validation=...)` for each, but for
        rounding; heads that can be trained at the same time are, which is quicker.

        Args:
            heads: fitted in place.
            table: n videos.
            mos: [n].
            rows: for each head, those that it may see, each once.
            validation: for each head, those of its rows that the protocol sets aside, if any.

        Raises:
            HeadError: as `fit` does.
        """
        aside = [np.empty(0, np.int64)] * len(rows) if validation is None else validation
        return [
            head.fit(table.subset(own), mos[own], validation=np.flatnonzero(np.isin(own, held)))
            for head, own, held in zip(heads, rows, aside, strict=True)
        ]

    def depends_on(self) -> dict[str, str]:
        """What its numbers depend on that no parameter tells: hashes of files, by what they are.

        Raises:
            HeadError: if a file cannot be read.
        """
        return {}

    def stands_on(self, table: FeatureTable) -> Mapping[str, Any]:
        """What it takes of a bank beside the rows of a table: hashes, as JSON values, by what.

        Args:
            table: on which it is fitted.

        Raises:
            HeadError: if the bank lacks something.
        """
        return {}

    def seen_before(self, ids: Sequence[str]) -> list[str]:
        """Those of these videos by which it was trained before it is fitted here.

        Raises:
            HeadError: if the head that it starts from cannot be read.
        """
        return []

    def knows_what_was_seen(self) -> bool:
        """Whether `seen_before` can tell: a head that it starts from may not say.

        Raises:
            HeadError: if the head that it starts from cannot be read.
        """
        return True

    def held_out(self, videos: Sequence[Video]) -> list[NDArray[np.bool_]]:
        """What a fit on these videos holds out of them to choose an epoch by.

        Args:
            videos: n, that no protocol sets any aside of.

        Returns:
            A mask [n] for each network that is trained, true for held-out videos; none of heads
            without epochs.

        Raises:
            HeadError: if the videos have too few scenes.
        """
        return []

    def trains_together(self, table: FeatureTable) -> bool:
        """Whether `fit_many` on rows of this table is quicker than one fit after the other."""
        return False

    def shares(self, table: FeatureTable) -> bool:
        """Whether `fit_many` trains networks in processes of its own, which share the table."""
        return False

    @classmethod
    def published(cls, weights: Path, table: FeatureTable, **parameters: Any) -> Self:
        """The head of an official checkpoint, as if it had been fitted; scores are its own.

        Args:
            weights: a state dict that `torch.save` wrote.
            table: of the features that it takes, in the official order; no video is looked at.
            parameters: of this head, where they differ from those of the paper.

        Raises:
            HeadError: if no official weights of this head are known, the file cannot be read
                without running code, or it holds other tensors.
        """
        raise HeadError(f"no official weights of {cls.name} are known")

    def _checked(self, table: FeatureTable, mos: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores, if they and the parameters can be fitted with."""
        self.check_parameters()
        mos = np.asarray(mos, np.float64)
        if mos.shape != (len(table),):
            raise HeadError(f"{self.name}: mos has shape {mos.shape} for {len(table)} videos")
        for video, score in zip(table.videos, mos, strict=True):
            if not np.isfinite(score):
                raise HeadError(f"{self.name}: the MOS of {video.id} is {score}")
        if len(mos) < self.min_videos:
            raise HeadError(f"{self.name} needs {self.min_videos} videos to fit; got {len(mos)}")
        if len(np.unique(mos)) < 2:
            raise HeadError(f"{self.name}: constant target, all {len(mos)} videos have {mos[0]:g}")
        return mos

    def predict(self, table: FeatureTable) -> NDArray[np.float64]:
        """[n], in the unit of the MOS that was fitted.

        Raises:
            HeadError: if the head is not fitted, or the table's roles or features are not those of
                `fit`.
        """
        self._check_fitted()
        table = self._chosen(table)
        if tuple(self.specs_) != table.roles:
            raise HeadError(
                f"{self.name} was fitted on the roles {', '.join(self.specs_)}; "
                f"this table has {', '.join(table.roles)}"
            )
        for role, fitted in self.specs_.items():
            offered = table.specs[role]
            if fitted != offered:
                raise HeadError(
                    f"{self.name} was fitted with {role} = {fitted.key} of shape {fitted.shape}; "
                    f"this table has {offered.key} of shape {offered.shape}"
                )
        if len(table) == 0:
            raise HeadError(f"{self.name}: the table has no videos to predict")
        with threadpool_limits(limits=1):  # as in `fit`
            return self._predict(table)

    def row_scores(self, table: FeatureTable) -> list[NDArray[np.float64]] | None:
        """Of heads that score rows: [t] of every video, one for each row of the first role.

        The score of a video is made of these, by the head's pooling; they are in the unit of the
        MOS.  None of heads that have no score of a row.

        Args:
            table: of the roles and features that were fitted.
        """
        return None

    def save(self, folder: Path | str, card: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write the fitted head into `folder`, made if need be, in place of the head there.

        At every moment, and if it is killed, the folder holds the old head or the new one.

        Args:
            folder: a new or empty folder, or that of a head.
            card: further entries of the card, as JSON values.

        Raises:
            HeadError: if the head is not fitted or larger than any that is read, the folder holds
                something else than a head, or it cannot be written.
        """
        self._check_fitted()
        entries = {
            "name": self.name,
            "parameters": self._kept(self.get_params()),
            "selection": self.selection_,
            "keys": {role: spec.key for role, spec in self.specs_.items()},
            "random_weights": any(spec.uses_random_weights for spec in self.specs_.values()),
            "record": self.record_,
            **card,
            "features": {role: json.loads(s.to_json()) for role, s in self.specs_.items()},
        }
        content = self._model_bytes()
        if len(content) > MOST_MODEL_BYTES:
            raise HeadError(
                f"{self.name} would have a model file of {len(content):,} bytes; files of more "
                f"than {MOST_MODEL_BYTES:,} are not read: fit it on fewer videos or narrower "
                "features, or by an approximation"
            )
        write_head(Path(folder), entries, content, suffix=self.suffix)

    def pack(self, folder: Path, table: FeatureTable) -> bool:
        """Put what the head stands on beside its features into its folder.

        Args:
            folder: of this head, as `save` wrote it.
            table: of the features that it was fitted on, from their bank.

        Returns:
            Whether there is anything; heads of mere features stand on nothing else.

        Raises:
            HeadError: if it cannot be read or written.
        """
        return False

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The head that `save` wrote; predicts the same bits.

        Raises:
            HeadError: if the folder holds no head, another one, or a damaged one.
        """
        card = read_card(folder)
        if card["name"] != cls.name:
            raise HeadError(f"{folder} holds a {card['name']} head, not {cls.name}")
        try:
            head = cls(**cls._kept(card["parameters"]))
            head.check_parameters()
            head.specs_ = {
                role: FeatureSpec.from_json(json.dumps(spec))
                for role, spec in card["features"].items()
            }
            keys = {role: spec.key for role, spec in head.specs_.items()}
        except (KeyError, TypeError, ValueError) as error:
            told = first_problem(error) if isinstance(error, ValidationError) else in_words(error)
            raise HeadError(f"{folder / CARD} is damaged or of another version: {told}") from error
        if keys != card["keys"]:
            raise HeadError(
                f"{folder / CARD} is damaged: its features have other keys than it says"
            )
        head.selection_ = card["selection"]
        head.record_ = card["record"]
        content, path = read_model(folder, card, most_bytes=head._most_model_bytes())
        head._restore(content, path)
        return head

    @classmethod
    def all_presets(cls) -> dict[str, Mapping[str, Any]]:
        """Parameters by the name of a preset: `laptop` has the defaults."""
        paper = {"paper": cls.paper} if cls.paper else {}
        return {"laptop": {}, **paper, **cls.presets}

    @classmethod
    def parameter_types(cls) -> dict[str, Any]:
        """What `__init__` takes: types by parameter, with ranges as pydantic states them."""
        types = get_type_hints(cls.__init__, include_extras=True)
        return {parameter: kind for parameter, kind in types.items() if parameter != "return"}

    def check_parameters(self) -> None:
        """Compare every parameter with its type and range; no role is named twice.

        Raises:
            HeadError: naming the parameter, its value and what it should be.
        """
        for parameter, kind in self.parameter_types().items():
            value = getattr(self, parameter)
            try:
                TypeAdapter(kind).validate_python(value, strict=True)
            except ValidationError as error:
                raise HeadError(
                    f"{self.name}: parameter {parameter!r} cannot be {value!r}: "
                    f"{error.errors()[0]['msg'].lower()}"
                ) from error
        if self.roles == []:
            raise HeadError(f"{self.name}: roles names none; leave it out for all")
        if self.roles is not None and len(set(self.roles)) < len(self.roles):
            raise HeadError(f"{self.name}: roles names one twice: {', '.join(self.roles)}")

    def texts(self, table: FeatureTable) -> Sequence[tuple[FeatureSpec, TextBank]]:
        """Text banks that it has learnt, for other heads to name; none of most heads.

        Args:
            table: of the features that it was fitted on, from their bank.
        """
        return ()

    def _chosen(self, table: FeatureTable) -> FeatureTable:
        """What the head takes of a table."""
        return table if self.roles is None else table.select(self.roles)

    def _repr_html_(self) -> str:
        """What a notebook shows: parameters, features by role, how the head was selected."""
        rows = []
        if hasattr(self, "specs_"):
            rows += [(role, f"{spec.key} {spec.shape}") for role, spec in self.specs_.items()]
            rows.append(("selection", self.selection_))
        else:
            rows.append(("selection", "not fitted"))
        return html_table(repr(self), ("role", "feature"), rows)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """As `_repr_html_`, in place of scikit-learn's diagram, which notebooks ask for first."""
        return {"text/plain": repr(self), "text/html": self._repr_html_()}

    @classmethod
    def _kept(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Those that stand in a card."""
        return {name: value for name, value in parameters.items() if name not in cls.unkept}

    def _check_fitted(self) -> None:
        if not hasattr(self, "specs_"):
            raise HeadError(f"{self.name} is not fitted; call fit first")

    @abstractmethod
    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        """Learn from a checked table; says by which rule hyper-parameters were chosen."""

    def _fit_beside(
        self, table: FeatureTable, mos: NDArray[np.float64], validation: NDArray[np.int64]
    ) -> str:
        """As `_fit`, where the protocol sets rows aside; by these, heads choose their epochs."""
        rest = np.setdiff1d(np.arange(len(table)), validation)
        part = table.subset(rest)
        selection = self._fit(part, self._checked(part, mos[rest]))
        return f"{selection}; the {len(validation)} validation videos of the split were not fitted"

    @abstractmethod
    def _predict(self, table: FeatureTable) -> NDArray[np.float64]:
        """[n] for a checked table."""

    def _most_model_bytes(self) -> int:
        """The most bytes of a model file of a head of these parameters and features."""
        return MOST_MODEL_BYTES

    @abstractmethod
    def _model_bytes(self) -> bytes:
        """What was learned, as a model file."""

    @abstractmethod
    def _restore(self, content: bytes, path: Path) -> None:
        """Read `_model_bytes` into this instance, whose parameters and specs are set.

        Args:
            content: of the model file.
            path: of the model file, for messages.
        """
