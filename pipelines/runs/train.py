"""One head, fitted on all rows, or made of published weights, into a folder that is shipped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from vqbank.pipelines.log import log
from vqbank.pipelines.recipe import Protocol, Recipe, required
from vqbank.pipelines.runs.asked import (
    AskedRecipe,
    Entries,
    Names,
    check_given,
    of_bank,
    recipe_of,
    title_of,
)
from vqbank.pipelines.runs.evaluate import experiment_of
from vqbank.store.errors import RecipeError

if TYPE_CHECKING:
    from vqbank.pipelines.experiments.experiment import Experiment
    from vqbank.pipelines.experiments.fitting import Telling
    from vqbank.pipelines.results.record import Record
    from vqbank.regressors.base import Head


@dataclass(frozen=True, slots=True, eq=False)
class TrainPlan:
    """A head that can be made; nothing is fitted yet."""

    recipe: Recipe
    """With keys for its features."""
    folder: Path
    """Where the head goes."""
    experiment: "Experiment | None"
    """What is fitted; None of published weights."""
    published: Path | None
    tensorboard: Path | None
    records: "Sequence[Record]" = ()
    pack: bool = False
    """Whether the folder takes along what the head's networks stand on."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        folder: Path,
        *,
        title: str,
        weights: Mapping[str, str] | None = None,
        published: Path | None = None,
        tensorboard: Path | None = None,
        record: Path | None = None,
        pack: bool = False,
    ) -> "TrainPlan":
        """Look up all that a recipe names; every refusal that needs no fit comes here.

        Args:
            recipe: of the run: one head, a bank, features by role, and videos with scores, but for
                published weights, which take none.
            folder: new, or of a head that is replaced.
            title: of the experiment, for messages.
            weights: by extractor, as extraction was told, where the bank has features of several.
            published: a file of official weights, in place of a fit.
            tensorboard: a folder for event files, made if need be.
            record: a file of `evaluate` of the same head, features and videos.
            pack: take along towers and texts of the bank that networks stand on.

        Raises:
            VqbankError: as `train` does: first what can be told without the bank's values, such as
                several heads, a folder that holds something else, or event files of a head without
                epochs; then what is wrong with videos and features.
        """
        untested = recipe.model_copy(update={"test": {}})
        chosen = of_bank(untested, weights, scored=published is None)
        # Seconds, of which `fit` has none.
        from vqbank.pipelines.experiments.train import check_plan, check_tensorboard
        from vqbank.regressors import make_head

        check_plan(list(chosen.heads), folder)
        if tensorboard is not None and published is None:
            name, parameters = chosen.head(next(iter(chosen.heads)))
            check_tensorboard(make_head(name, **parameters))
        whole = chosen.model_copy(update={"protocol": Protocol()})  # no part is left out
        experiment = experiment_of(whole, title=title) if published is None else None
        records = []
        if record is not None and experiment is not None:
            from vqbank.pipelines.experiments.held_out import held_out_errors
            from vqbank.pipelines.results.records import read_records

            records = read_records(record)
            held_out_errors(records, experiment)
        return cls(chosen, folder, experiment, published, tensorboard, records, pack)

    @property
    def head(self) -> str:
        """The name of the head."""
        return self.recipe.head(next(iter(self.recipe.heads)))[0]

    def fit(self, watch: "Telling | None" = None) -> "Head":
        """Fit the head, or take its weights, and write its folder.

        Args:
            watch: told of costs, steps and epochs as they come.

        Raises:
            RecipeError: if there are several heads.
            HeadError: if it cannot be fitted, or the folder holds something else.
            KeyboardInterrupt: saying from where the same goes on, if it does.
        """
        head = self._fitted(watch)
        if self.pack:
            from vqbank.store.bank import FeatureStore

            store = FeatureStore(required(self.recipe, "bank", option="--bank"))
            features = {role: spec.key for role, spec in head.specs_.items()}
            if not head.pack(self.folder, store.table([], features)):
                log.info(
                    "%s stands on nothing but its features: there is nothing to pack", head.name
                )
        return head

    def _fitted(self, watch: "Telling | None") -> "Head":
        from vqbank.pipelines.experiments import train as shipping

        if self.experiment is None or self.published is not None:
            assert self.published is not None, "either is there"
            return shipping.take_published(self.published, self.folder, recipe=self.recipe)
        place = shipping.checkpoint_of(self.folder)
        files = f"{escape(place.name)}*"
        left = f"{place} (remove {place.name}* to start anew)"
        has_epochs = any(cell.head.has_epochs for cell in self.experiment.cells)
        if has_epochs and any(place.parent.glob(files)):
            log.info("going on from %s", left)
        try:
            return shipping.train(
                self.experiment,
                self.folder,
                recipe=self.recipe,
                tensorboard=self.tensorboard,
                records=self.records,
                watch=watch,
            )
        except KeyboardInterrupt as stopped:
            kept = has_epochs and any(place.parent.glob(files))
            more = f"; the same command goes on from {left}" if kept else ""
            raise KeyboardInterrupt(f"stopped{more}") from stopped


def train(
    recipe: AskedRecipe = None,
    *,
    output: Path | str,
    bank: Path | str | None = None,
    features: Names | Mapping[str, str] | None = None,
    videos: Path | str | None = None,
    labels: Path | str | None = None,
    score: str | None = None,
    head: Entries | None = None,
    missing: str | None = None,
    weights: Mapping[str, str] | None = None,
    published: Path | str | None = None,
    tensorboard: Path | str | None = None,
    record: Path | str | None = None,
    pack: bool = False,
    watch: "Telling | None" = None,
) -> "Head":
    """Fit one head on all rows, and write the folder that `predict` takes.

    A head with epochs that is interrupted leaves a checkpoint beside the folder, from which the
    same call goes on.

    Args:
        recipe: a `Recipe`, its file, or the name of one that comes with vqbank.  What is given
            beside it replaces what it says.
        output: a new folder, or that of a head, which is replaced.
        bank: the folder of a bank.
        features: names or names by role, as `evaluate` takes them.
        videos: a manifest (.csv) with scores; or else
        labels: a label file of any layout, whose videos are found in the bank.
        score: the column of the label file that is the MOS, where it has several.
        head: a name, such as "ridge", or {name: parameters}.
        missing: "stop" (default) or "drop", as of `evaluate`.
        weights: of the features' extractors, where the bank has those of several.
        published: official weights (VSFA's of `gru`, RQ-VQA's of `mlp`, Q-CLIP's): nothing is
            fitted, and no videos are named.
        tensorboard: a folder for TensorBoard's event files, of a head with epochs.
        record: a file that `vqbank evaluate --json` wrote of the same head, features and videos:
            the range of its errors on test parts is then told beside every score.
        pack: take along towers and texts of the bank that networks stand on, so that the folder
            needs no bank.
        watch: told of costs, steps and epochs as they come.

    Returns:
        The fitted head.

    Raises:
        RecipeError: if something is not given, or of another type, or several heads are.
        UnknownNameError: if there is no such head or parameter.
        BankError: if there is no bank.
        ManifestError: if a file of videos cannot be read, or a video has no score.
        MissingFeatureError: if the bank has no such feature, or a video lacks it.
        AmbiguousFeatureError: if the bank has several features of a name.
        HeadError: if the head cannot be fitted, or `output` holds something else.

    Example:
        >>> head = vqbank.train(bank="bank", features={"motion": "motion.series"},
        ...                     videos="set.csv", head="ridge", output="head")
        >>> head.name, list(head.specs_)
        ('ridge', ['motion'])
    """
    asked = recipe_of(
        recipe,
        bank=bank,
        features=features,
        videos=videos,
        labels=labels,
        score=score,
        heads=head,
        missing=missing,
    )
    check_given(
        weights=weights, output=output, published=published, tensorboard=tensorboard, record=record
    )
    if published is not None:
        refuse_beside_published(
            videos=videos,
            labels=labels,
            score=score,
            missing=missing,
            tensorboard=tensorboard,
            record=record,
        )
    return TrainPlan.of(
        asked,
        Path(output),
        title=title_of(recipe),
        weights=weights,
        published=None if published is None else Path(published),
        tensorboard=None if tensorboard is None else Path(tensorboard),
        record=None if record is None else Path(record),
        pack=pack,
    ).fit(watch)


def refuse_beside_published(**given: object) -> None:
    """Refuse what published weights leave nothing to do for.

    Args:
        **given: what is asked for, by the option's name; None where it is not.

    Raises:
        RecipeError: naming the first that is.
    """
    for option, value in given.items():
        if value is not None:
            raise RecipeError(f"--published fits nothing: leave --{option} out")
