"""Groups of the columns of a feature, as features of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.store.column import ArrayRows, Column
from vqbank.store.errors import RecipeError
from vqbank.store.table import FeatureTable

Groups = Mapping[str, Sequence[tuple[int, int]]]
"""By role, first column and end of each group."""


def groups_of(text: str, widths: Mapping[str, int]) -> tuple[str, list[tuple[int, int]]]:
    """What `ROLE=SIZE` or `ROLE=FIRST:END,FIRST:END` says.

    Args:
        text: as given.
        widths: by role, the columns of its feature.

    Raises:
        RecipeError: if it is of another form, or names columns that there are not.
    """
    role, _, said = text.rpartition("=")
    if role not in widths:
        raise RecipeError(f"--groups {text!r}: there is no role {role!r}, but {', '.join(widths)}")
    width = widths[role]
    try:
        if said.isdecimal():
            size = int(said)
            groups = [(at, min(at + size, width)) for at in range(0, width, size)]
        else:
            groups = [(int(a), int(b)) for a, b in (one.split(":") for one in said.split(","))]
    except ValueError as error:
        raise RecipeError(
            f"--groups {text!r} is not of the form ROLE=SIZE or ROLE=FIRST:END,FIRST:END"
        ) from error
    for first, end in groups:
        if not 0 <= first < end <= width:
            raise RecipeError(
                f"--groups {text!r}: {first}:{end} are no columns of {role}, which has {width}"
            )
    return role, groups


def grouped(rated: RatedVideos, groups: Groups) -> RatedVideos:
    """The same videos with a role for each group of columns, in place of the role that has them.

    Args:
        rated: with features of one axis.
        groups: by role.

    Raises:
        RecipeError: if rows of a feature are no vectors.
    """
    table, columns = rated.table, dict[str, Column]()
    filled, left_out = dict(rated.filled), dict(rated.left_out)
    for role, spec in table.specs.items():
        if role not in groups:
            columns[role] = table._columns[role]
            continue
        if len(spec.shape) != 1:
            raise RecipeError(f"{spec.key} has rows of shape {spec.shape}, and no plain columns")
        flat, offsets = table.read(role, range(len(table)))
        videos = range(len(table))
        times = [table.pts_seconds(role, row) for row in videos]
        frames = [table.frame_index(role, row) for row in videos]
        known = [table.has_times(role, row) for row in videos]
        for first, end in groups[role]:
            own = replace(
                spec,
                name=f"{spec.name}-{first}-{end}",
                shape=(end - first,),
                stored_dtype="float32" if spec.stored_dtype == "bfloat16" else spec.stored_dtype,
                identity={**spec.identity, "columns": [first, end]},
            )
            values = np.ascontiguousarray(flat[:, first:end])
            rows = ArrayRows(values, offsets, times, frames, known)
            columns[f"{role}[{first}:{end}]"] = Column(own, rows.located())
            for counts in (filled, left_out):
                if spec.name in counts:
                    counts[own.name] = counts[spec.name]
    return replace(
        rated, table=FeatureTable(table.videos, columns), filled=filled, left_out=left_out
    )
