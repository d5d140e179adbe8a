"""What a run is asked for: a recipe with what is said beside it laid over, and what it lacks.

No learning library is imported before all that can be told without one is known to be right.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PositiveInt, TypeAdapter, ValidationError

from vqbank.pipelines.recipe import Protocol, RatedFile, Recipe, read_recipe, required
from vqbank.store.documents import yaml_value
from vqbank.store.errors import ManifestError, RecipeError, UnknownNameError, unknown_name

if TYPE_CHECKING:
    import torch

AskedRecipe = Recipe | Path | str | None
"""A recipe, its file, or the name of one that comes with vqbank; None for an empty one."""
Names = str | Sequence[str]
"""One name, or several."""
Entries = Names | Mapping[str, Mapping[str, Any]]
"""Names alone, or with parameters, as a recipe has them."""
TestSets = (
    Path | str | Sequence[Path | str] | Mapping[str, Path | str | Mapping[str, Any] | RatedFile]
)
"""Files, each as `[NAME=]FILE`; or by name, with further keys, as a recipe has them."""
EVERY_SCORE = "all"
"""In place of a column of a label file: every one that is a score by its name."""
FILES = ("videos", "labels", "bank")
"""Keys of a recipe that are paths."""
_PATH = (Path | str | None, "a path")
_NAMES = (Names | Mapping[str, str] | None, "a name, several, or names by role")
_ENTRIES = (Entries | None, "a name, several, or parameters by name")
_TEXT = (str | None, "a text")
KINDS: Mapping[str, tuple[Any, str]] = {
    "recipe": (AskedRecipe, "a Recipe, its file, or the name of one that comes with vqbank"),
    **dict.fromkeys([*FILES, "keep", "output", "published", "tensorboard", "record"], _PATH),
    **dict.fromkeys(["extractors", "heads"], _ENTRIES),
    **dict.fromkeys(["splits", "score", "missing", "decoder", "overlap"], _TEXT),
    "test": (TestSets | None, "a file, several, or files by name"),
    "features": _NAMES,
    **dict.fromkeys(["by", "only", "groups", "vary"], (Names | None, "a text, or several")),
    "curve": (Sequence[float] | None, "fractions"),
    "weights": (Mapping[str, str] | None, "choices by the name of an extractor"),
    "jobs": (PositiveInt | None, "a number of processes, 1 or more"),
}
"""What may be given for each thing that a run is asked for, and the same in words."""


def check_given(**given: object) -> None:
    """Refuse values of another type, and numbers out of their range.

    Args:
        **given: by the names of KINDS; None where nothing is.

    Raises:
        RecipeError: naming the first that is wrong, and what it may be.
    """
    for name, value in given.items():
        kind, words = KINDS[name]
        try:
            TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            raise RecipeError(f"{name} cannot be {value!r}; it is {words}") from error


def recipe_of(
    recipe: AskedRecipe,
    *,
    extractors: Entries | None = None,
    features: Names | Mapping[str, str] | None = None,
    heads: Entries | None = None,
    splits: str | None = None,
    test: TestSets | None = None,
    **further: str | Path | None,
) -> Recipe:
    """A recipe with what is given beside it laid over; what is None changes nothing.

    Args:
        recipe: to begin with.
        extractors: names alone keep the parameters that the recipe has for them.
        features: feature by role; or strings `[ROLE=]NAME[@KEY]`.
        heads: as `extractors`.
        splits: the name of a scheme, or a file; other keys of the protocol then fall away, but for
            the statistic.
        test: test sets in place of the recipe's.
        **further: of the recipe's other keys.

    Raises:
        RecipeError: if the recipe cannot be read, a value is of another type, two features have
            one role, or two test sets one name.
        UnknownNameError: if there is no such recipe, or no such way with missing videos.
    """
    check_given(
        recipe=recipe,
        extractors=extractors,
        features=features,
        heads=heads,
        splits=splits,
        test=test,
        **further,
    )
    begun = recipe if isinstance(recipe, Recipe) else Recipe()
    if isinstance(recipe, str | Path):
        begun = read_recipe(Path(recipe))
    update: dict[str, Any] = {
        key: Path(value) if key in FILES else value
        for key, value in further.items()
        if value is not None
    }
    for option, known in (("missing", ("stop", "drop")), ("overlap", ("stop", "mark"))):
        if update.get(option, "stop") not in known:
            raise UnknownNameError(unknown_name(f"--{option}", update[option], known))
    if extractors:
        update["extractors"] = _entries(extractors, begun.extractors)
    if features:
        update["features"] = roles_of(features)
    if heads:
        update["heads"] = _entries(heads, begun.heads)
    if splits is not None:
        update["protocol"] = Protocol(splits=splits, statistic=begun.protocol.statistic)
    if test:
        update["test"] = _test_sets(test)
    return begun.model_copy(update=update)


def _entries(given: Entries, known: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    if isinstance(given, Mapping):
        return {name: dict(parameters) for name, parameters in given.items()}
    return {name: known.get(name, {}) for name in several(given)}


def several(names: Names) -> Sequence[str]:
    """One name or many as many."""
    return [names] if isinstance(names, str) else names


def _test_sets(given: TestSets) -> dict[str, RatedFile]:
    """Files by name, also from `[NAME=]FILE`; without a name, by that of the file."""
    if isinstance(given, Mapping):
        named = list(given.items())
    else:
        named = []
        for text in [given] if isinstance(given, str | Path) else given:
            name, _, file = str(text).partition("=")
            if isinstance(text, Path) or Path(text).exists() or "=" not in text:
                name, file = "", str(text)
            if not str(file):
                raise RecipeError(f"--test {text!r} names no file; it is of the form [NAME=]FILE")
            named.append((name or Path(file).stem, file))
    found: dict[str, RatedFile] = {}
    for name, one in named:
        if name in found:
            raise RecipeError(f"two test sets have the name {name!r}; give --test NAME=FILE")
        keys = {"file": one} if isinstance(one, str | Path) else one
        try:
            found[name] = RatedFile.model_validate(keys)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, ("test", name, *problem["loc"])))
            raise RecipeError(f"{place}: {problem['msg'].lower()}") from error
    return found


def roles_of(features: Names | Mapping[str, str]) -> dict[str, str]:
    """Feature names by role, also from `[ROLE=]NAME[@KEY]`; a bare name is its own role.

    Raises:
        RecipeError: if two have one role.
    """
    if isinstance(features, Mapping):
        return dict(features)
    roles: dict[str, str] = {}
    for feature in several(features):
        role, _, name = feature.rpartition("=")
        role = role or name.partition("@")[0]
        if role in roles:
            raise RecipeError(f"--features names role {role!r} twice")
        roles[role] = name
    return roles


def with_parameters(
    recipe: Recipe,
    settings: Sequence[str] = (),
    *,
    preset: str | None = None,
    device: str | None = None,
) -> Recipe:
    """A recipe whose heads have other parameters.

    Args:
        recipe: of the run.
        settings: `HEAD.PARAMETER=VALUE` each, HEAD being a label of `heads`, VALUE as in YAML.
        preset: of all heads that have it.
        device: of all heads that train networks.

    Raises:
        RecipeError: if a setting is of another form, its value no YAML, or no head trains networks.
        UnknownNameError: if there is no such head.
    """
    heads = {label: dict(parameters) for label, parameters in recipe.heads.items()}
    if preset is not None:
        having = [label for label in heads if preset in _presets(recipe.head(label)[0])]
        if not having:
            raise RecipeError(
                f"--preset {preset}: {', '.join(heads) or 'no head'} has no such preset; there are "
                "laptop and, of heads of a paper, paper"
            )
        for label in having:
            heads[label]["preset"] = preset
    if device is not None:
        check_device(device)
        networks = [label for label in heads if _trains_networks(recipe.head(label)[0])]
        if not networks:
            raise RecipeError(
                f"--device {device}: {', '.join(heads) or 'no head'} trains no network; leave it "
                "out"
            )
        for label in networks:
            heads[label]["device"] = device
    for setting in settings:
        place, separator, value = setting.partition("=")
        label, dot, parameter = place.rpartition(".")
        if not (separator and dot and label and parameter):
            raise RecipeError(f"--set {setting!r} is not of the form HEAD.PARAMETER=VALUE")
        if label not in heads:
            raise UnknownNameError(unknown_name("head of this run", label, heads))
        heads[label][parameter] = yaml_value(value, f"--set {place}", RecipeError)
    return recipe.model_copy(update={"heads": heads})


def _presets(head: str) -> tuple[str, ...]:
    from vqbank.regressors import HEADS

    return tuple(HEADS[head].all_presets())


def _trains_networks(head: str) -> bool:
    from vqbank.regressors import HEADS

    return "device" in HEADS[head].parameter_types()


def title_of(recipe: AskedRecipe) -> str:
    """For tables: the name of the recipe's file."""
    return Path(recipe).stem if isinstance(recipe, str | Path) else "vqbank"


def by_score(recipe: Recipe) -> list[Recipe]:
    """A recipe for each score that its `score` means: columns with commas between them, or "all".

    Raises:
        RecipeError: if several are asked for, and there is no label file, or one is named twice.
        ManifestError: if the label file cannot be read.
    """
    from vqbank.pipelines.labels import score_columns

    asked = (recipe.score or "").strip()
    if asked != EVERY_SCORE and "," not in asked:
        return [recipe]
    if recipe.labels is None:
        raise RecipeError(
            f"--score {asked} means columns of a label file: name it by --labels; the score of a "
            "manifest is `mos`"
        )
    names = [name.strip() for name in asked.split(",")]
    if asked == EVERY_SCORE:
        names = score_columns(recipe.labels)
    if len(set(names)) < len(names) or not all(names):
        raise RecipeError(f"--score {asked} names a column twice, or none")
    return [recipe.model_copy(update={"score": n, "score_name": n}) for n in names]


def of_bank(
    recipe: Recipe, weights: Mapping[str, str] | None = None, *, scored: bool = True
) -> Recipe:
    """With keys for its features; what is missing or has no such name is refused first.

    Args:
        recipe: of a run that reads a bank.
        weights: of its features, where the bank has those of several: as extraction was told.
        scored: whether videos with scores are wanted.

    Raises:
        RecipeError: if it names no videos, bank, features or heads, or its file of splits cannot
            be read.
        ManifestError: if the file of videos is not there.
        BankError: if there is no bank.
        UnknownNameError: if there is no such head, parameter of one, or scheme of splits.
        HeadError: if a parameter of a head has an impossible value.
        MissingFeatureError: if the bank has no such feature.
        AmbiguousFeatureError: if it has several of the name.
    """
    from vqbank.pipelines.entries import check_heads, check_names, with_keys
    from vqbank.store.bank import FeatureStore

    if scored:
        if recipe.labels is None:
            required(recipe, "videos", option="--videos or --labels")
        tested = (own.file for own in recipe.test.values())
        for source in filter(None, (recipe.videos, recipe.labels, *tested)):
            if not source.exists():
                raise ManifestError(f"{source} cannot be read: No such file or directory")
    store = FeatureStore(required(recipe, "bank", option="--bank"))
    required(recipe, "features", option="--features")
    required(recipe, "heads", option="--head")
    check_names(recipe)
    keyed = with_keys(recipe, weights=weights)
    for name in keyed.features.values():
        store.resolve(name)
    check_heads(recipe)
    return keyed


def check_folder(folder: Path | None, option: str) -> None:
    """Refuse a folder that could not be made in the end.

    Args:
        folder: that is written into, if any; made if need be.
        option: of the command line, for the message.

    Raises:
        RecipeError: if it is a file.
    """
    if folder is not None and folder.exists() and not folder.is_dir():
        raise RecipeError(f"{option} {folder} is a file; name a folder")


def check_device(name: str) -> None:
    """Refuse what is no name of a device.

    Raises:
        RecipeError: naming those that are.
    """
    if not re.fullmatch(r"(cpu|cuda|mps|xpu)(:\d+)?", name):
        raise RecipeError(
            f"--device {name}: a device is cpu, cuda (the first GPU), cuda:1 (the second), mps or "
            "xpu"
        )


def device_of(name: str) -> "torch.device":
    """The device of this name.

    Raises:
        RecipeError: if this machine has none.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise RecipeError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return device
