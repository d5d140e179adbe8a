"""Recipes: a YAML file that names videos, bank, extractors, features, heads and protocol."""

import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from vqbank.pipelines.manifest import VIDEO_SUFFIXES
from vqbank.pipelines.paper import Paper
from vqbank.store.documents import file_text, yaml_value
from vqbank.store.errors import RecipeError, UnknownNameError, unknown_name

Name = TypeVar("Name", str, Path)


def _possible_name(name: Name) -> Name:
    """Text of YAML may hold what no file can be called by: a zero byte, half a character."""
    try:
        possible = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError("no file can have this name")
    return name


File = Annotated[Path, AfterValidator(_possible_name)]


class Protocol(BaseModel):
    """How a head is tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    splits: Annotated[str, AfterValidator(_possible_name)] = "scene"
    """Random parts with no scene on two sides; or a name of
    `vqbank.pipelines.splits.schemes.SCHEMES`, such as `official`, `videval100`; or a file
    (`.json`) that `vqbank split make` wrote, relative to the recipe's folder.  All but `scene` take
    no further keys."""
    count: int = Field(default=10, ge=1, le=10_000)  # as splits.MOST_SPLITS, which takes seconds
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    min_test_scenes: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    statistic: Literal["median", "mean"] = "median"
    """Over the splits: the number that tables print, as a paper states it.  Of any splits; records
    keep both."""

    @model_validator(mode="after")
    def _say_once(self) -> "Protocol":
        further = sorted(self.model_fields_set - {"splits", "statistic"})
        if self.splits != "scene" and further:
            raise ValueError(
                f"splits {self.splits} take no {' and no '.join(further)}, as `splits: scene` does"
            )
        return self


class RatedFile(BaseModel):
    """A test set: videos with scores that every fitted head predicts, whatever splits test."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: File
    """A manifest (.csv) or a label file of any layout, whose videos are banked."""
    score: str | None = None
    """The column of a label file that is the MOS, where it has several."""
    score_name: str = "MOS"
    """What the scores are, for tables and pictures."""
    part: str | None = None
    """Only videos of this part, such as `test`."""


def _as_file(value: object) -> object:
    """A path alone is a file without further keys."""
    if not isinstance(value, str | Path | Mapping | RatedFile):
        raise ValueError("a file is wanted, or its keys (`file`, `score`, `score_name`, `part`)")
    return {"file": value} if isinstance(value, str | Path) else value


def _by_name(value: object) -> object:
    if not isinstance(value, Mapping):
        raise ValueError("files by name are wanted, such as `LIVE-VQC: live-vqc.csv`")
    return value


TestFiles = Annotated[
    dict[Annotated[str, Field(min_length=1)], Annotated[RatedFile, BeforeValidator(_as_file)]],
    BeforeValidator(_by_name),
]


class Recipe(BaseModel):
    """Everything of a run; paths are relative to the recipe's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    videos: File | None = None
    """Manifest (.csv), folder, or one video."""
    labels: File | None = None
    """Instead of `videos`, where features are banked: a label file of any layout."""
    score: str | None = None
    """The column of the label file that is the MOS, where it has several."""
    bank: File | None = None
    decoder: str = "pyav"
    extractors: dict[str, dict[str, Any]] = {}
    """Parameters by extractor name.  Several of one kind have names of their own, each with
    `extractor: KIND` among its parameters."""
    features: dict[str, str] = {}
    """Feature name or key by role; the order is that of concatenation."""
    missing: Literal["stop", "drop"] = "stop"
    """What happens where some videos of a manifest lack a feature: nothing runs, or they are left
    out of every side of splits that are made of all."""
    heads: dict[str, dict[str, Any]] = {}
    """Parameters by a label that tables show.  `head` among them names the head, where the label
    does not, so that variants of one can be tried; `preset: paper` means those of its paper."""
    score_name: str = "MOS"
    """What the manifest's `mos` column holds, for tables and pictures."""
    test: TestFiles = {}
    """Test sets by a name that tables show; a path alone, or with further keys."""
    overlap: Literal["stop", "mark"] = "stop"
    """What happens where a test set has videos that are trained on: nothing runs, or its lines are
    marked."""
    protocol: Protocol = Protocol()
    paper: Paper | None = None
    """Which table of a paper it makes, with the published numbers."""

    def head(self, label: str) -> tuple[str, dict[str, Any]]:
        """Name and parameters of the head that stands under a label.

        Raises:
            RecipeError: if `head` is no name.
        """
        parameters = dict(self.heads[label])
        name = parameters.pop("head", label)
        if not isinstance(name, str):
            raise RecipeError(
                f"heads.{label}.head: this should be the name of a head, got {name!r}"
            )
        return name, parameters


def read_recipe(path: Path | str) -> Recipe:
    """The recipe at `path`; where no file is, the shipped one of this name.

    Args:
        path: a YAML file, to whose folder the recipe's paths are relative; or the name of a recipe
            that comes with vqbank, as `vqbank recipe` lists them.

    Raises:
        RecipeError: naming the file and the key; unknown keys with the nearest known one.
        UnknownNameError: if it is a plain name, of neither a file nor a shipped recipe.

    Example:
        >>> recipe = vqbank.read_recipe("demo")
        >>> recipe.features
        {'quality': 'nss.brisque', 'motion': 'motion.series'}
    """
    path = Path(path)
    if path.name == str(path) and not path.suffix and not path.is_file():
        return _recipe_of(shipped_recipe(path.name), path)
    if path.suffix.lower() in (".csv", *VIDEO_SUFFIXES):
        raise RecipeError(
            f"{path} is no recipe, which is a .yaml file; --videos takes manifests and videos"
        )
    return _recipe_of(file_text(path, RecipeError, what="YAML"), path)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    found = files("vqbank.pipelines").joinpath("recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in found)


def shipped_recipe(name: str) -> str:
    """The text of a recipe that comes with the package.

    Raises:
        UnknownNameError: if there is none of this name.
    """
    if name not in shipped_recipes():
        raise UnknownNameError(unknown_name("recipe", name, shipped_recipes()))
    return files("vqbank.pipelines").joinpath(f"recipes/{name}.yaml").read_text(encoding="utf-8")


def _recipe_of(text: str, path: Path) -> Recipe:
    content = yaml_value(text, path, RecipeError)
    if not isinstance(content, dict):
        raise RecipeError(f"{path} is not a YAML mapping of keys to values")
    for key in ("extractors", "heads"):
        if isinstance(content.get(key), dict):  # `nss:` alone means no parameters
            content[key] = {name: value or {} for name, value in content[key].items()}
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_first_problem(error)}") from error
    folder = path.parent
    update: dict[str, Any] = {
        key: folder / value
        for key in ("videos", "labels", "bank")
        if (value := getattr(recipe, key)) is not None
    }
    update["heads"] = {
        label: {**own, "start": str(folder / own["start"])}
        if isinstance(own.get("start"), str)
        else own
        for label, own in recipe.heads.items()
    }
    update["test"] = {
        name: own.model_copy(update={"file": folder / own.file})
        for name, own in recipe.test.items()
    }
    if recipe.protocol.splits.endswith(".json"):
        splits = str(folder / recipe.protocol.splits)
        update["protocol"] = recipe.protocol.model_copy(update={"splits": splits})
    return recipe.model_copy(update=update)


def required(recipe: Recipe, key: str, *, option: str) -> Any:
    """The value of a recipe key that this command cannot do without.

    Args:
        recipe: After the command line's options have been laid over it.
        key: Of the recipe.
        option: Of the command line, that gives the same.

    Raises:
        RecipeError: if neither the recipe nor the command line gives it.
    """
    value = getattr(recipe, key)
    if value is None or value == {}:
        raise RecipeError(f"no {key} given; set `{key}:` in the recipe, or {option}")
    return value


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    *parents, key = problem["loc"]
    place = ".".join(str(step) for step in problem["loc"])
    if problem["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {
            "protocol": Protocol,
            "paper": Paper,
            **dict.fromkeys((f"test.{parent}" for parent in parents[1:]), RatedFile),
        }
        model = models.get(".".join(map(str, parents)), Recipe)
        known = unknown_name("key", str(key), model.model_fields)
        return f"{'.'.join(map(str, parents))}: {known}" if parents else known
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}, got {problem['input']!r}"
