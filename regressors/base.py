"""What a head is: a scikit-learn estimator on a FeatureTable that can be saved without pickle."""

import hashlib
import io
import json
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from vqbank.regressors.pooling import pooled, pooled_width
from vqbank.regressors.progress import Step, Watch
from vqbank.store.documents import file_bytes, file_text, json_value, yaml_text, yaml_value
from vqbank.store.errors import BankError, HeadError, in_words, refusal
from vqbank.store.files import inside, write_atomically
from vqbank.store.schema import FeatureSpec
from vqbank.store.table import FeatureTable

CARD = "card.yaml"
OLD_CARD = "card.json"
"""How cards were written first; such heads still load."""
FORMAT = 1
MOST_MODEL_BYTES = 2**30
"""A Gaussian process on 10,000 videos has 655 MB at 8,192 inputs."""
_SCHEMA = "schema.json"
MOST_SCHEMA_BYTES = 2**24
MOST_UNFOLDED_BYTES = 2**26
MOST_GROWTH = 3
"""Times that a longer model file may unfold: skops does not compress."""


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
    """As in HEADS."""
    min_videos: ClassVar[int]
    """Fewest videos that can be fitted."""
    suffix: ClassVar[str]
    """Of the model file."""
    paper: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Parameters with which the head is that of its paper, where these are not the defaults."""

    has_epochs: ClassVar[bool] = False
    """Whether it is trained in epochs: such heads keep checkpoints and take validation rows."""
    unkept: ClassVar[frozenset[str]] = frozenset()
    """Parameters that belong to a machine, not to the head: its card does not hold them."""

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

    def trains_together(self, table: FeatureTable) -> bool:
        """Whether `fit_many` on rows of this table is quicker than one fit after the other."""
        return False

    def shares(self, table: FeatureTable) -> bool:
        """Whether `fit_many` trains networks in processes of its own, which share the table."""
        return False

    @classmethod
    def published(cls, weights: Path, specs: Mapping[str, FeatureSpec], **parameters: Any) -> Self:
        """The head of an official checkpoint, as if it had been fitted; scores are its own.

        Args:
            weights: a state dict that `torch.save` wrote.
            specs: the features that it takes, by role, in the official order.
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

    def save(self, folder: Path, card: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Write the fitted head into `folder`, made if need be, in place of the head there.

        The model file is named by its content and written first; replacing `card.yaml` is the one
        act that puts the new head in place of the old one.  At every moment the folder holds the
        old head or the new one; a process that is killed may leave a model file that no card names.

        Args:
            folder: a new or empty folder, or that of a head.
            card: further entries of the card, as JSON values.

        Raises:
            HeadError: if the head is not fitted, the folder holds something else than a head, or it
                cannot be written.
        """
        self._check_fitted()
        check_vacant(folder)
        content = self._model_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        model = f"model-{sha256[:16]}{self.suffix}"
        text = yaml_text(
            {
                "format": FORMAT,
                "name": self.name,
                "parameters": _plain(self._kept(self.get_params())),
                "selection": self.selection_,
                "keys": {role: spec.key for role, spec in self.specs_.items()},
                "random_weights": any(spec.uses_random_weights for spec in self.specs_.values()),
                "model": {"file": model, "sha256": sha256},
                "record": _plain(self.record_),
                **card,
                "features": {role: json.loads(s.to_json()) for role, s in self.specs_.items()},
            }
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            old = _card_of(folder)
            replaced = model if old is None else read_card(folder)["model"]["file"]
            write_atomically(folder / model, content)
            write_atomically(folder / CARD, text.encode())
            if replaced != model:
                (folder / replaced).unlink(missing_ok=True)
            (folder / OLD_CARD).unlink(missing_ok=True)
        except OSError as error:
            raise HeadError(f"{folder} cannot be written: {refusal(error)}") from error

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
            told = _first_problem(error) if isinstance(error, ValidationError) else in_words(error)
            raise HeadError(f"{folder / CARD} is damaged or of another version: {told}") from error
        if keys != card["keys"]:
            raise HeadError(
                f"{folder / CARD} is damaged: its features have other keys than it says"
            )
        head.selection_ = card["selection"]
        head.record_ = card["record"]
        path = folder / card["model"]["file"]
        _refuse_link(folder, path)
        content = file_bytes(path, HeadError, most_bytes=MOST_MODEL_BYTES)
        if hashlib.sha256(content).hexdigest() != card["model"]["sha256"]:
            raise HeadError(f"{path} is damaged: its sha256 is not the one in {CARD}")
        head._restore(content, path)
        return head

    @classmethod
    def parameter_types(cls) -> dict[str, Any]:
        """What `__init__` takes: types by parameter, with ranges as pydantic states them."""
        types = get_type_hints(cls.__init__, include_extras=True)
        return {parameter: kind for parameter, kind in types.items() if parameter != "return"}

    def check_parameters(self) -> None:
        """Compare every parameter with its type and range.

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


class _ModelFile(BaseModel):
    file: str = Field(pattern=r"^model-[0-9a-f]{16}\.[a-z]+$")  # never a path out of the folder
    sha256: str


class _Card(BaseModel):
    """What every card has; whoever saves a head may add entries."""

    model_config = ConfigDict(extra="allow", strict=True)

    format: Literal[1]
    name: str
    parameters: dict[str, Any]
    selection: str
    keys: dict[str, str]
    random_weights: bool
    model: _ModelFile
    record: dict[str, Any] = {}
    features: dict[str, dict[str, Any]] = Field(min_length=1)


def read_card(folder: Path) -> dict[str, Any]:
    """What stands in a saved head's `card.yaml`, or in the `card.json` of one saved long ago.

    Raises:
        HeadError: if it is not there, or not one.
    """
    path = _card_of(folder) or folder / CARD
    _refuse_link(folder, path)
    if not path.is_file():
        raise HeadError(f"{folder} holds no head: there is no {CARD}")
    text = file_text(path, HeadError)
    value_of = json_value if path.name == OLD_CARD else yaml_value
    try:
        return _Card.model_validate(value_of(text, path, HeadError)).model_dump()
    except ValidationError as error:
        raise HeadError(
            f"{path} is not the card of a head of format {FORMAT}: {_first_problem(error)}"
        ) from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    return "".join(f"{step}: " for step in first["loc"]) + str(first["msg"]).lower()


def _refuse_link(folder: Path, path: Path) -> None:
    """A head may come from a stranger: nothing in its folder leads out of it.

    Raises:
        HeadError: naming the link.
    """
    try:
        inside(folder, path)
    except BankError as error:
        raise HeadError(str(error)) from error


def _card_of(folder: Path) -> Path | None:
    """The card of a folder; the new one where a save was killed before the old one went."""
    return next((folder / name for name in (CARD, OLD_CARD) if (folder / name).exists()), None)


def _plain(value: Any) -> Any:
    """With lists and dicts in place of what YAML has no words for."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value


def check_vacant(folder: Path) -> None:
    """Refuse a folder that holds something else than a head.

    Raises:
        HeadError: if no head may be written there.
    """
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return
    except OSError as error:
        raise HeadError(f"{folder} is no folder for a head: {error.strerror}") from error
    if CARD in names or OLD_CARD in names:
        read_card(folder)
        return
    # What a killed `save` leaves behind is no obstacle.
    strangers = sorted(
        name for name in names if not re.match(r"\.?(model-|card\.(yaml|json))", name)
    )
    if strangers:
        raise HeadError(
            f"{folder} holds no head, but {strangers[0]}; name a new folder, or empty this one"
        )


def _check_archive(content: bytes, path: Path) -> None:
    """Refuse an archive that would unfold to much more than a model has.

    One of its files may be asked for many times by the description of the model beside them.

    Raises:
        HeadError: naming the file.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        left = max(MOST_UNFOLDED_BYTES, MOST_GROWTH * len(content))
        left -= sum(sizes.values())
        if left < 0 or sizes[_SCHEMA] > MOST_SCHEMA_BYTES:
            raise HeadError(f"{path} would unfold to {sum(sizes.values()):,} bytes; no model does")
        waiting = [json_value(archive.read(_SCHEMA), f"{path}: {_SCHEMA}", HeadError)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            left -= sizes.get(str(node.get("file")), 0)
            if left < 0:
                raise HeadError(f"{path} would unfold to many times its length; no model does")
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node


class PooledHead(Head):
    """A scikit-learn pipeline on pooled features."""

    suffix: ClassVar[str] = ".skops"
    steps: ClassVar[tuple[type, ...]]
    """Classes of the pipeline's steps; a saved head may hold no others."""
    approximate_steps: ClassVar[tuple[type, ...]] = ()
    """The same of a head that was fitted by approximation, where it can be."""
    parts: ClassVar[tuple[type, ...]] = ()
    """Further classes inside the steps that skops does not trust by itself."""

    model_: Pipeline

    @abstractmethod
    def operations(self, videos: int, width: int) -> float:
        """Floating point operations of a fit, roughly: by these a measured fit is extrapolated.

        Args:
            videos: that are fitted.
            width: of their pooled features.
        """

    def refit_operations(self, videos: int, width: int) -> float:
        """Of a fit with hyper-parameters that are chosen already."""
        return self.operations(videos, width)

    def small(self, videos: int) -> Self:
        """An unfitted head that fits a few videos in the way in which this one fits so many."""
        return clone(self)

    def _tell(self, done: int, total: int, what: str) -> None:
        if self.watch is not None:
            self.watch(Step(self.name, done, total, what))

    def _predict(self, table: FeatureTable) -> NDArray[np.float64]:
        return np.asarray(self.model_.predict(pooled(table).astype(np.float64)), np.float64)

    def _model_bytes(self) -> bytes:
        import skops.io  # here, because it imports all of scikit-learn, which takes seconds

        return skops.io.dumps(self.model_)

    def _restore(self, content: bytes, path: Path) -> None:
        import skops.io
        from skops.io.exceptions import UntrustedTypesFoundException

        trusted = [f"{part.__module__}.{part.__qualname__}" for part in self.parts]
        try:
            _check_archive(content, path)
            # No type is trusted beyond skops's own scikit-learn and NumPy ones, and `parts`.
            model = skops.io.loads(content, trusted=trusted)
        except HeadError:
            raise
        except UntrustedTypesFoundException as error:
            raise HeadError(f"{path} is refused: {in_words(error)}") from error
        except Exception as error:  # skops raises whatever damaged files lead it to
            raise HeadError(f"{path} is not a skops file, or damaged: {in_words(error)}") from error
        try:
            self._check(model, path)
        except HeadError:
            raise
        except Exception as error:  # so does scikit-learn, of parts that are of other kinds
            raise HeadError(f"{path} is damaged: it cannot predict: {in_words(error)}") from error
        self.model_ = model

    def _check(self, model: Any, path: Path) -> None:
        if not self.has_steps(model):
            names = " and ".join(step.__name__ for step in self.steps)
            raise HeadError(f"{path} is refused: it holds something other than {names}")
        width = pooled_width(self.specs_.values())
        if getattr(model, "n_features_in_", None) != width:
            raise HeadError(f"{path} was not fitted on the {width} inputs that {CARD} describes")
        self._check_model(model, path)
        score = np.asarray(model.predict(np.zeros((1, width))), np.float64)
        if score.shape != (1,):
            raise HeadError(f"{path} is damaged: it gives {score.shape} scores for one video")

    @classmethod
    def has_steps(cls, model: Any) -> bool:
        """Whether this is a pipeline of the steps that this head may have."""
        steps = tuple(type(step) for _, step in model.steps) if type(model) is Pipeline else ()
        return steps != () and steps in (cls.steps, cls.approximate_steps)

    def _check_model(self, model: Pipeline, path: Path) -> None:
        """Look into a restored pipeline of the right steps and width.

        Args:
            model: what the file holds.
            path: of the file, for messages.

        Raises:
            HeadError: if predicting with it would be unsafe.
        """
