"""What a paper says of the table that a recipe makes: what it needs, and the published numbers."""

from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Text = Annotated[str, Field(min_length=1)]


class Published(NamedTuple):
    """One published number."""

    row: str
    data: str
    metric: str
    value: float


class Paper(BaseModel):
    """Where a recipe's table stands, and what stands in it.

    Rows have a number for each metric of the first data set, then for each of the second, and so
    on; null where the paper has none.  A row that has the label of a head of the recipe is what
    this head is compared with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    """The method, with where it was published."""
    shows: Text
    """Which table or figure, and what it compares."""
    needs: list[Text] = []
    """Data sets with scores that it was made on, and whatever else nobody can download here."""
    protocol: str = ""
    """How the paper splits, and which statistic it states."""
    chosen: str = ""
    """By which rows the paper's epochs were chosen, as far as it or its code says."""
    data: list[Text] = []
    """Data sets of the columns, as the ids of their videos begin."""
    metrics: list[Text] = []
    """Columns of each data set, by the names that records have; or of costs."""
    rows: dict[str, list[FiniteFloat | None]] = {}

    @model_validator(mode="after")
    def _rows_are_whole(self) -> Self:
        wanted = len(self.data) * len(self.metrics)
        for row, values in self.rows.items():
            if len(values) != wanted:
                raise ValueError(
                    f"row {row!r} has {len(values)} numbers for {len(self.data)} data sets of "
                    f"{len(self.metrics)} metrics"
                )
        return self

    @property
    def numbers(self) -> list[Published]:
        """Every number that is published."""
        columns = [(data, metric) for data in self.data for metric in self.metrics]
        return [
            Published(row, *column, value)
            for row, values in self.rows.items()
            for column, value in zip(columns, values, strict=True)
            if value is not None
        ]
