"""What a run is asked for, and what a video lacks of it."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vqbank.extractors import make_extractor, specs_of
from vqbank.extractors.base import Extractor
from vqbank.extractors.sampling import MotionSampling
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import FeatureSpec, Fingerprint, Video

Outputs = Mapping[str, FeatureSpec]
"""Of one extractor, by the output's name."""


class Wanted:
    """Extractors, their features, and the bank that these go to."""

    def __init__(
        self, extractors: Sequence[Extractor], store: FeatureStore, *, decoder: str
    ) -> None:
        """Resolve what the features are; no model is loaded.

        Raises:
            WeightsError: if an extractor's weights are not at hand.
        """
        self.by_extractor: dict[Extractor, Outputs] = {
            extractor: specs_of(extractor, decoder=decoder) for extractor in extractors
        }
        motion = make_extractor("motion")
        self.motion = next((one for one in extractors if one == motion), motion)
        """What makes the series that others choose their frames by."""
        self._motion_series = specs_of(self.motion, decoder=decoder)["series"]
        self._store = store

    @property
    def specs(self) -> list[FeatureSpec]:
        """Everything that a video has when it is done."""
        return [spec for outputs in self.by_extractor.values() for spec in outputs.values()]

    def lacked_by_any(self, videos: Sequence[Video]) -> bool:
        """Whether there is anything to do; no file of a video is looked at."""
        return any(self._store.missing(spec, videos) for spec in self.specs)

    def lacking(self, video: Video, content: Fingerprint | None) -> dict[Extractor, Outputs]:
        """The extractors of which this video lacks an output, and which these are.

        The motion series is among them where something else needs it.

        Args:
            video: One of the run's.
            content: Of its file, which what is banked is compared with; None where it is not there.

        Raises:
            ChangedVideoError: if another file is banked under the video's id.
        """
        lacking: dict[Extractor, Outputs] = {}
        banked: list[FeatureSpec] = []
        for extractor, outputs in self.by_extractor.items():
            missing = {o: s for o, s in outputs.items() if self._store.missing(s, [video])}
            if missing:
                lacking[extractor] = missing
            banked.extend(outputs[output] for output in outputs.keys() - missing.keys())
        if choose_by_motion(lacking):
            if self._store.missing(self._motion_series, [video]):
                lacking.setdefault(self.motion, {"series": self._motion_series})
            else:
                banked.append(self._motion_series)
        if content is not None:
            for spec in banked:
                self._store.check_file(spec, video, content)
        return lacking

    def banked_motion(self, video: Video) -> NDArray[np.float32]:
        """The motion series [t] of a video that has it.

        Raises:
            DamagedShardError: if its bytes have changed since they were committed.
        """
        return self._store.read(self._motion_series, video.id).values[:, 0]


def choose_by_motion(extractors: Iterable[Extractor]) -> bool:
    """Whether one of these chooses its frames by the motion series."""
    return any(isinstance(extractor.sampling, MotionSampling) for extractor in extractors)
