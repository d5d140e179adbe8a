"""What a record holds of one test set: videos that every fitted head predicts."""

from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, Field

from vqbank.pipelines.results.statistics import STRICT
from vqbank.pipelines.terminal import counted

TRAINED_MARK = "†"
"""At a result on a test set of which videos are in a training part."""
Places = list[Annotated[int, Field(ge=0)]]
"""Videos, by their numbers."""


class SetRecord(BaseModel):
    """Rated videos that no split fits, beside the test parts of the splits.

    Predictions of them are in the unit of the training scores.
    """

    model_config = STRICT

    name: str = Field(min_length=1)
    """In tables."""
    score_name: str
    labels: str | None
    """The label file's name and layout, where the scores come from one."""
    ids: list[str] = Field(min_length=1)
    mos: list[float]
    """Of all its videos, on its own scale."""
    mos_sha256: str
    """Of every video's id and score: numbers of other scores are other numbers."""
    mos_kind: str = ""
    """Which kind of MOS, where the data set has several and the label file tells."""
    files_sha256: str
    """Of the files, or values, that the features are of."""
    seen_by_weights: list[str]
    """Data sets in it that the weights of a feature were trained on."""
    trained_on: Places = []
    """Its videos that are in a training part, by id, as the same file or by their scene."""
    dropped: int = 0
    """Videos that were left out, because they lack a feature."""
    filled: dict[str, int] = {}
    """By feature, videos with values that were filled at the import by means over all videos."""
    left_out: dict[str, int] = {}
    """By feature, rows of its file that the import left out: none of their values was finite."""
    taken_for: str = ""
    """The bank's data set that videos were taken to be of, where their names state none."""

    @property
    def problem(self) -> str:
        """What no run has written; empty where all is as it should be."""
        if len(self.mos) != len(self.ids):
            return f"mos has {len(self.mos)} values for {counted(len(self.ids), 'video')}"
        if any(b <= a for a, b in pairwise(self.trained_on)):
            return "trained_on does not name its videos in ascending order, each once"
        if self.trained_on and self.trained_on[-1] >= len(self.ids):
            return f"trained_on names video {self.trained_on[-1]} of {len(self.ids)}"
        return ""

    @property
    def trained_text(self) -> str:
        """The caution of videos that heads have seen; empty where there are none."""
        if not self.trained_on:
            return ""
        return (
            f"{TRAINED_MARK} {self.name}: {len(self.trained_on)} of "
            f"{counted(len(self.ids), 'video')} are in a training part, or others of their "
            "scene are. These numbers are too good for videos that no head has seen."
        )
