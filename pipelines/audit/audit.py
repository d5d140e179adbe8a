"""An audit: everything that makes a number too good, looked at in turn."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vqbank.pipelines.audit import label_seen, sides
from vqbank.pipelines.audit.finding import Finding
from vqbank.pipelines.audit.label_seen import clearest_step, nearest_copy
from vqbank.pipelines.audit.metadata import inputs_of
from vqbank.pipelines.audit.prompts import prompts_with_levels
from vqbank.pipelines.audit.scaling import scaled
from vqbank.pipelines.experiments.experiment import Experiment, evaluate
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.results.provenance import seen_by_weights, unknown_weights
from vqbank.pipelines.results.record import Record
from vqbank.pipelines.results.statistics import moments
from vqbank.pipelines.splits.split import Split, first_alike
from vqbank.pipelines.terminal import counted
from vqbank.regressors import make_head
from vqbank.regressors.metrics import quality_metrics
from vqbank.regressors.pooling import pooled
from vqbank.store.schema import FeatureSpec, Video
from vqbank.store.table import FeatureTable
from vqbank.store.words import few

SHOWN = 5
"""Videos, pairs and columns that a finding names."""
METADATA_HEAD = "ridge"
TELLING = ("clip.", "backbone.")
"""Beginnings of names of features that see what a video shows: near-duplicates go by these."""


def audit(
    experiment: Experiment,
    *,
    record: Record | None = None,
    metadata: Mapping[str, NDArray[np.float64]] | None = None,
    paper_chose: str = "",
) -> Iterator[Finding]:
    """Look at splits, features and scores for what makes numbers too good.

    Args:
        experiment: whose splits and features; of a table without roles, splits and scores alone.
        record: of the same experiment, whose first head stands beside what needs no picture.
        metadata: [n] by what it is: what is known of the videos without looking at them.
        paper_chose: by which rows the paper's epochs were chosen whose numbers stand beside.

    Yields:
        A finding for each check, in a fixed order; what cannot be looked at is told as unknown.
    """
    head = _head_text(record)
    yield _scenes(experiment, head)
    yield _repeats(experiment)
    yield from _test_sets(experiment)
    yield _twins(experiment)
    table = experiment.rated.table
    for role, spec in table.specs.items():
        features = pooled(table.select([role])).astype(np.float64)
        yield _copies(spec, features, experiment)
        yield _steps(spec, features, experiment)
        yield _scaling(spec, features, experiment)
        yield _weights(spec, experiment)
        yield _prompts(spec, len(table))
    if record is not None:
        yield _choice(record, paper_chose)
    yield _metadata(experiment, metadata or {}, record, head)


def _head_text(record: Record | None) -> str:
    """The first head's number, for the end of a sentence."""
    if record is None or not record.tests_itself:
        return ""
    head = record.heads[0]
    return f"; {head.name} on {record.feature_names} has {head.statistics['srcc'].median:.3f}"


def _scenes(experiment: Experiment, head: str) -> Finding:
    check, splits = "scenes on both sides", experiment.splits
    videos, mos = splits.videos, experiment.rated.mos
    if all(video.scene is None for video in videos):
        return Finding(
            check, "unknown", None, "no video has a scene, so that nobody can tell",
            ("give scenes by a column `scene`, or by `vqbank labels import --scene`",),
        )  # fmt: skip
    found = sides.shared_scenes(splits.rows, videos)
    touched = sorted({one.split for one in found})
    if not touched:
        return Finding(check, "clear", 0.0, f"none in {counted(len(splits), 'split')}")
    rows = [splits.rows[number] for number in touched]
    tested = sum(len(split.test) for split in rows)
    share = sum(one.test for one in found) / max(1, tested)
    looked_up = [
        quality_metrics(mos[split.test], sides.scene_lookup(split, videos, mos)).srcc
        for split in rows
        if len(split.test)
    ]
    srcc, _, _ = moments(np.array(looked_up, np.float64))
    text = (
        f"in {len(touched)} of {counted(len(splits), 'split')}, {share:.0%} of the tested videos "
        f"have their scene in the training part: its mean score, looked up with no picture, has a "
        f"median SRCC of {srcc:.3f}{head}"
    )
    names = (
        f"split {one.split}: scene {one.scene}, {one.train} train, {one.test} test"
        for one in found[:SHOWN]
    )
    return Finding(check, "leak", srcc, text, (*names, "`vqbank split audit` lists them all"))


def _repeats(experiment: Experiment) -> Finding:
    check, splits = "test parts that repeat", experiment.splits
    if not splits.tests_itself:
        return Finding(check, "clear", 0.0, "there are none: test sets alone are tested")
    first = first_alike(splits.rows)
    different = len(set(first))
    if different == len(first):
        return Finding(check, "clear", 0.0, f"none of {counted(len(first), 'split')}")
    again = [f"split {n} tests what split {one} does" for n, one in enumerate(first) if one != n]
    return Finding(
        check, "note", float(len(first) - different),
        f"only {different} of {counted(len(first), 'test part')} are different: a median over all "
        "is one over fewer",
        tuple(again[:SHOWN]),
    )  # fmt: skip


def _test_sets(experiment: Experiment) -> Iterator[Finding]:
    """Videos of test sets that are trained on, under the same id, file or scene, or as twins."""
    for one in experiment.sets:
        check, rated = f"test set {one.name}", one.rated
        trained = one.trained_on(experiment.rated, experiment.splits.rows)
        twins = _twins_of_set(experiment, rated.table)
        names = [rated.table.videos[row].id for row in trained]
        count = len(set(names) | {pair.test for pair in twins})
        of = f"of {counted(len(rated.table), 'video')}"
        if not count:
            text = f"none {of} is trained on, under its name or another"
            yield Finding(check, "clear", 0.0, text)
            continue
        text = (
            f"{count} {of} are trained on: {len(trained)} by id, file or scene, {len(twins)} pairs "
            "of nearly the same features"
        )
        yield Finding(
            check, "leak", float(count), text, (*names[:SHOWN], *map(_pair_text, twins[:SHOWN]))
        )


def _twins_of_set(experiment: Experiment, other: FeatureTable) -> list[sides.NearPair]:
    table = experiment.rated.table
    roles = _telling(table)
    if not roles:
        return []
    own = sorted({row for split in experiment.splits.rows for row in split.train.tolist()})
    features = [pooled(t.select(roles)) for t in (table.subset(own), other)]
    sizes = len(own), len(other)
    split = Split(np.arange(sizes[0]), np.arange(sizes[0], sum(sizes)))
    videos = [*(table.videos[row] for row in own), *other.videos]
    return sides.twins([split], videos, np.concatenate(features)) or []


def _telling(table: FeatureTable) -> list[str]:
    """The roles by which near-duplicates are found: of what sees contents, else all."""
    telling = [role for role, spec in table.specs.items() if spec.name.startswith(TELLING)]
    return telling or list(table.roles)


def _pair_text(pair: sides.NearPair) -> str:
    return (
        f"{pair.train} (train) and {pair.test} (test): {pair.distance:.4f} of the usual distance, "
        f"in {counted(len(pair.splits), 'split')}"
    )


def _twins(experiment: Experiment) -> Finding:
    check, table = "near-duplicates on both sides", experiment.rated.table
    roles = _telling(table)
    if not roles:
        return Finding(check, "unknown", None, "no feature was given to compare videos by")
    features = pooled(table.select(roles))
    names = ", ".join(table.specs[role].name for role in roles)
    found = sides.twins(experiment.splits.rows, table.videos, features)
    if found is None:
        return Finding(
            check, "unknown", None,
            f"{names} has fewer than {sides.FEWEST_COLUMNS} numbers that differ: many videos "
            "share them by chance",
        )  # fmt: skip
    apart = [pair for pair in found if not _one_scene(pair, experiment)]
    if not apart:
        scenes = f", beside {len(found)} of one scene" if found else ""
        return Finding(check, "clear", 0.0, f"none by {names}{scenes}")
    tested = {pair.test for pair in apart}
    text = (
        f"{counted(len(apart), 'pair')} are one video twice by {names}: {len(tested)} of "
        f"{counted(len(table), 'video')} stand on the other side under another name"
    )
    look = (*map(_pair_text, apart[:SHOWN]), "`vqbank split audit --bank --features` lists more")
    return Finding(check, "leak", float(len(apart)), text, look)


def _one_scene(pair: sides.NearPair, experiment: Experiment) -> bool:
    """Whether both are of one scene, which another check tells."""
    scenes = {video.id: video.scene for video in experiment.rated.table.videos}
    return scenes[pair.train] is not None and scenes[pair.train] == scenes[pair.test]


def _copies(spec: FeatureSpec, features: NDArray[np.float64], experiment: Experiment) -> Finding:
    check = "columns that copy the scores"
    found = nearest_copy(features, experiment.rated.mos)
    width = features.shape[1] // 2
    of = "mean" if found.column < width else "deviation"
    column = f"the {of} over time of column {found.column % width}"
    text = f"{column} has SRCC {found.srcc:+.3f} with the scores, the most of {width}"
    copied = abs(found.srcc) >= label_seen.COPY_SRCC
    look = (f'bank.table(...).frame()["ROLE.{of}.{found.column % width}"]',) if copied else ()
    return Finding(check, "leak" if copied else "clear", abs(found.srcc), text, look, spec.key)


def _steps(spec: FeatureSpec, features: NDArray[np.float64], experiment: Experiment) -> Finding:
    check, mos = "steps at a score", experiment.rated.mos
    found = _clearest_step(features, experiment)
    if found is None:
        text = f"a step takes {label_seen.FEWEST_VIDEOS} videos of different scores"
        return Finding(check, "unknown", None, text, feature=spec.key)
    videos = experiment.rated.table.videos
    told = f"the {len(found.below)} videos just below {found.score:g} from as many just above"
    if not found.is_clear:
        text = f"{told} are told with AUC {found.auc:.3f} at most, as of any feature of pictures"
        return Finding(check, "clear", found.auc, text, feature=spec.key)
    text = (
        f"{told} are told with AUC {found.auc:.3f}, which no picture shows where people "
        "gave the scores: the feature was made from them, as by a prompt that names them in words, "
        "or the scores are a rule's"
    )
    below, above = (
        [f"{videos[row].id} ({mos[row]:g})" for row in rows]
        for rows in (found.below[-SHOWN:], found.above[:SHOWN])
    )
    look = (f"just below: {', '.join(below)}", f"just above: {', '.join(above)}")
    return Finding(check, "leak", found.auc, text, look, spec.key)


def _clearest_step(features: NDArray[np.float64], experiment: Experiment) -> label_seen.Step | None:
    """Within a data set: of two, one may lie above the other on the scale, and look otherwise."""
    sets, mos = experiment.splits.data_sets, experiment.rated.mos
    found = []
    for name in dict.fromkeys(sets.tolist()):
        rows = np.flatnonzero(sets == name)
        if (step := clearest_step(features[rows], mos[rows])) is not None:
            sides_of = (tuple(rows[list(side)].tolist()) for side in (step.below, step.above))
            found.append(label_seen.Step(step.score, step.auc, *sides_of))
    return max(found, key=lambda step: (step.is_clear, step.auc), default=None)


def _scaling(spec: FeatureSpec, features: NDArray[np.float64], experiment: Experiment) -> Finding:
    check, values = "scaling by tested videos", features[:, : features.shape[1] // 2]
    parts: list[tuple[str, NDArray[np.int64] | None]] = [("over all videos", None)]
    parts += [
        (f"over the test part of split {number}", split.test)
        for number, split in enumerate(experiment.splits.rows)
        if len(split.test) > 1
    ]
    for where, rows in parts:
        found = scaled(values, rows)
        if found is None:
            continue
        columns = f"{len(found.columns)} of {counted(found.of, 'column')}"
        text = f"{columns} are {found.how} {where}, which is where scaling by these puts them"
        look = (f"columns {few([str(column) for column in found.columns])}",)
        return Finding(check, "leak", float(len(found.columns)), text, look, spec.key)
    return Finding(check, "clear", 0.0, "values are not scaled over tested videos", (), spec.key)


def _weights(spec: FeatureSpec, experiment: Experiment) -> Finding:
    check = "weights that saw tested videos"
    ids = _tested(experiment.splits.rows, experiment.rated.table.videos)
    ids += [video.id for one in experiment.sets for video in one.rated.table.videos]
    specs = {"": spec}
    if seen := seen_by_weights(specs, ids):
        text = f"its weights were trained on {', '.join(seen)}"
        look = ("`vqbank show BANK FEATURE` names what its weights were trained on",)
        return Finding(check, "leak", float(len(seen)), text, look, spec.key)
    if unknown_weights(specs):
        return Finding(check, "unknown", None, "nobody knows what they saw", (), spec.key)
    if spec.identity.get("provenance") == "unknown":
        text = "it was imported, and nobody knows which weights made it"
        return Finding(check, "unknown", None, text, (), spec.key)
    return Finding(check, "clear", 0.0, "they are not known to have", (), spec.key)


def _prompts(spec: FeatureSpec, videos: int) -> Finding:
    check, found = "prompts that name quality", prompts_with_levels(spec)
    if not found:
        text = "no text of its identity names a level of quality"
        return Finding(check, "clear", 0.0, text, (), spec.key)
    if len(found) < videos / 2:
        text = (
            f"{counted(len(found), 'text')} of its identity name levels of quality, the same for "
            "every video: no score is told by them"
        )
        return Finding(check, "clear", float(len(found)), text, tuple(found[:SHOWN]), spec.key)
    text = (
        f"{counted(len(found), 'text')} of its identity name levels of quality, for "
        f"{counted(videos, 'video')}: so many tell each video's"
    )
    return Finding(check, "leak", float(len(found)), text, tuple(found[:SHOWN]), spec.key)


def _choice(record: Record, paper_chose: str) -> Finding:
    """By which rows epochs and parameters were chosen: never by tested ones, here."""
    check, head = "choice of epochs and parameters", record.heads[0]
    text = f"{head.name}: {head.rule}; no tested row is seen"
    few_held_out = tuple(filter(None, (one.few_held_out for one in record.heads)))
    if "test" in paper_chose.lower():
        text += f"; but of the paper's own numbers: {paper_chose}"
        return Finding(check, "note", None, text, few_held_out)
    return Finding(check, "note" if few_held_out else "clear", None, text, few_held_out)


def _tested(splits: Sequence[Split], videos: Sequence[Video]) -> list[str]:
    return [videos[row].id for row in sorted({r for s in splits for r in s.test.tolist()})]


def _metadata(
    experiment: Experiment,
    metadata: Mapping[str, NDArray[np.float64]],
    record: Record | None,
    head: str,
) -> Finding:
    """What size, rate and length alone come to on the same splits, by a linear head."""
    check = "metadata alone"
    if not metadata or not experiment.splits.tests_itself:
        text = "neither bank nor label file tells sizes, rates, lengths or bytes that differ"
        return Finding(check, "unknown", None, text)
    videos = experiment.rated.table.videos
    inputs = inputs_of(metadata)
    table = FeatureTable.from_arrays(videos, {"metadata": list(inputs[:, None])})
    cell = Cell("metadata", make_head(METADATA_HEAD), ("metadata",))
    rated = replace(experiment.rated, table=table, files={})
    made = replace(experiment, rated=rated, cells=[cell], sets=(), given=experiment.splits)
    alone = evaluate(made).heads[0]
    srcc = alone.statistics["srcc"].median
    text = f"{', '.join(metadata)} come to a median SRCC of {srcc:.3f}{head}"
    if record is not None and srcc >= record.heads[0].statistics["srcc"].median:
        return Finding(check, "note", srcc, f"{text}, which is no more than that")
    return Finding(check, "clear", srcc, text)
