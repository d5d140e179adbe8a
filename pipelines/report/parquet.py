"""What a report shows of its videos as one Parquet file, for tools that look at tables and maps."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vqbank.pipelines.report.feature_map import map_of
from vqbank.pipelines.report.known import FACTS
from vqbank.store.errors import VqbankError, naming

if TYPE_CHECKING:
    from vqbank.pipelines.report.page import Page


def write_parquet(page: "Page", path: Path) -> list[str]:
    """Write a row for each video; gives the names of the columns.

    `id`, `score`, `predicted: HEAD` and `residual: HEAD` (in the unit of the scores) of every head,
    what is known of the file (`lines`, `rate`, `seconds`), the group, `projection_x` and
    `projection_y` of the map, and `picture`: JPEG bytes and a name, as Hugging Face's `datasets`
    has pictures, which embedding-atlas shows.  What is not known is null.

    Args:
        page: what is known of a run.
        path: a new file, or one that is replaced.

    Raises:
        VqbankError: if pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise VqbankError("Parquet needs pyarrow: `pip install 'vqbank[parquet]'`") from error
    drawn, known = page.drawn, page.known

    def numbers(values: Any) -> Any:
        return pyarrow.array(np.asarray(values, np.float64), from_pandas=True)  # NaN is null

    columns: dict[str, Any] = {
        "id": pyarrow.array(list(drawn.ids)),
        "score": numbers(drawn.mos),
    }
    for one in page.tried:
        columns[f"predicted: {one.label}"] = numbers(one.mapped)
        columns[f"residual: {one.label}"] = numbers(one.mapped - drawn.mos)
    for fact in FACTS:
        columns[fact] = numbers(known.facts[fact])
    if known.groups:
        columns[known.grouped_by.replace(" ", "_")] = pyarrow.array(list(known.groups))
    if page.table is not None:
        places, _ = map_of(page.table, kind=page.map_kind)
        columns["projection_x"], columns["projection_y"] = map(numbers, places.T)
    if known.pictures:
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        rows = [
            {"bytes": known.pictures[row], "path": f"{row}.jpg"} if row in known.pictures else None
            for row in range(len(drawn.ids))
        ]
        columns["picture"] = pyarrow.array(rows, kind)
    with naming(path):
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return list(columns)
