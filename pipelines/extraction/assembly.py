"""One extractor on one video: decoded frames fill clips, computed rows become a feature."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbank.extractors.base import Extractor
from vqbank.extractors.sampling import Clips, MotionSampling, Timeline
from vqbank.extractors.video import Probe
from vqbank.extractors.views import ClipView, View
from vqbank.pipelines.extraction.memory import Allowance
from vqbank.pipelines.extraction.refusals import Refusal
from vqbank.store.errors import InvalidFeatureError
from vqbank.store.schema import Feature, FeatureSpec, Fingerprint, Video

RETAINED_BYTES = 256 * 2**20
"""A video's frames, after the view, that wait in memory until its motion series is known; where
there are more, the video is decoded a second time."""


class OpenVideo:
    """A video that a decoder could open, and what is known of it."""

    def __init__(self, video: Video, fingerprint: Fingerprint, probe: Probe) -> None:
        self.video = video
        self.fingerprint = fingerprint
        """Of its file before it was opened."""
        self.timeline = Timeline(
            probe.pts_seconds,
            probe.header_frames,
            probe.rate,
            video_id=video.id,
            height=probe.height,
            width=probe.width,
        )
        self.shortfall = 0
        """Frames that were promised and did not come, of the pass that lacked most."""
        self._probed = probe.record()

    @property
    def health(self) -> dict[str, Any]:
        """What is banked of the file beside its features, as JSON values."""
        return {**self._probed, "shortfall": self.shortfall}


class FullClip(NamedTuple):
    """A clip all of whose frames have come."""

    assembly: "Assembly"
    """Where its rows go."""
    number: int
    """Which clip of the video it is, from 0."""
    frames: Tensor
    """[f, *shape], as the view makes them."""


class Assembly:
    """One extractor on one video: frames pass, clips fill, rows arrive."""

    def __init__(
        self,
        opened: OpenVideo,
        extractor: Extractor,
        specs: Mapping[str, FeatureSpec],
        clips: Clips,
    ) -> None:
        """Nothing has passed yet.

        Args:
            opened: The video.
            extractor: Whose view takes the frames.
            specs: By output, what is missing.
            clips: Which frames make which rows.
        """
        count = len(clips.frames)
        assert count, f"{extractor.name} takes no clip of {opened.video.id}"
        self.opened = opened
        self.extractor = extractor
        self.specs = specs
        self.clips = clips
        self.clips_to_fill = count
        self.clips_to_compute = count
        self.nbytes = 0
        """Bytes of all rows, of every output."""
        self.seconds = 0.0
        """Its share of what batches took in the network."""
        self.refusal: Refusal | None = None
        """Why there will be no feature, if so."""
        self.settled = asyncio.Event()
        """Set once all rows are there, or once it is refused."""
        self._side = extractor.side(opened.timeline, clips)
        self._rows: list[Mapping[str, NDArray[Any]]] = [{}] * count
        self._partial: dict[int, tuple[Tensor, int]] = {}
        wanted = clips.frames.reshape(-1)
        self._order = np.argsort(wanted, kind="stable")
        self._sorted = wanted[self._order]

    def take(
        self, frame_index: NDArray[np.int64], frames: Tensor, *, viewed: bool = False
    ) -> list[FullClip]:
        """Let decoded frames pass, in order; returns every clip that they complete.

        Args:
            frame_index: [k], increasing.
            frames: uint8 [k, 3, h, w]; or what the view makes of them.
            viewed: whether the view has seen them.
        """
        length = self.clips.frames.shape[1]
        partial = self._partial  # `forget` may put another in its place meanwhile
        hits = [
            (place, *divmod(int(position), length))
            for place, index in enumerate(frame_index)
            for position in self._order[slice(*np.searchsorted(self._sorted, [index, index + 1]))]
        ]
        pictures = [frames[place] for place, _, _ in hits] if viewed else self._view(hits, frames)
        full = []
        for (_, clip, slot), picture in zip(hits, pictures, strict=True):
            if clip not in partial:
                partial[clip] = (picture.new_empty((length, *picture.shape)), 0)
            tensor, filled = partial.pop(clip)
            tensor[slot] = picture
            if filled + 1 < length:
                partial[clip] = (tensor, filled + 1)
            else:
                full.append(FullClip(self, clip, tensor))
        return full

    def _view(self, hits: Sequence[tuple[int, int, int]], frames: Tensor) -> list[Tensor]:
        """What the view makes of frame `place` for `clip`, for every (place, clip, slot)."""
        view = self.extractor.view
        groups: dict[int, list[int]] = {}
        for number, (_, clip, _) in enumerate(hits):
            groups.setdefault(clip if isinstance(view, ClipView) else 0, []).append(number)
        pictures: list[Tensor] = [frames] * len(hits)
        for clip, numbers in groups.items():
            places = sorted({hits[number][0] for number in numbers})
            own: View
            own = view.of_clip(self.opened.timeline, clip) if isinstance(view, ClipView) else view
            with torch.inference_mode():
                seen = dict(zip(places, own(frames[places]), strict=True))
            for number in numbers:
                pictures[number] = seen[hits[number][0]]
        return pictures

    def put(self, clip: int, rows: Mapping[str, NDArray[Any]]) -> None:
        """Keep the rows of one clip, by output; those of a refused feature are let go."""
        if self.refusal is not None:
            return
        self._rows[clip] = rows
        self.nbytes += sum(array.nbytes for array in rows.values())
        self.clips_to_compute -= 1
        if self.clips_to_compute == 0:
            self.settled.set()

    def refuse(self, refusal: Refusal) -> None:
        """There will be no feature; the first reason counts."""
        if not self.settled.is_set():
            self.refusal = refusal
            self.forget()
            self.settled.set()

    def forget(self) -> None:
        """Let go what was gathered: it will not be needed."""
        self._rows, self._partial = [], {}

    def feature(self, output: str) -> Feature:
        """The finished feature of one output.

        Raises:
            InvalidFeatureError: if a row is not finite; names video, feature and row.
        """
        frame_index = self.clips.rows.reshape(-1)
        kept = frame_index >= 0
        try:
            return Feature(
                values=np.concatenate([rows[output] for rows in self._rows])[kept],
                pts_seconds=self.opened.timeline.pts_seconds[frame_index[kept]],
                frame_index=frame_index[kept],
                side={
                    side.name: np.concatenate(list(self._side[side.name]))[kept]
                    for side in self.specs[output].side
                },
            )
        except InvalidFeatureError as error:
            name = self.specs[output].name
            raise InvalidFeatureError(f"{self.opened.video.id}: {name}: {error}") from error


class HeldFrames:
    """Frames of a video for an extractor that chooses among them by motion, until that is known.

    Every frame is held as the view makes it, if they all fit and other videos leave room for them;
    else the video is decoded again once the series is known, and so it is where the view differs
    from clip to clip.
    """

    def __init__(
        self,
        opened: OpenVideo,
        extractor: Extractor,
        specs: Mapping[str, FeatureSpec],
        allowance: Allowance,
    ) -> None:
        """Nothing is held yet.

        Args:
            opened: The video.
            extractor: Whose view sees the frames.
            specs: By output, what is missing.
            allowance: For the frames of all videos.
        """
        self.opened = opened
        self.extractor = extractor
        self.specs = specs
        self.decode_again = isinstance(extractor.view, ClipView)
        """Whether the frames are not held, so that the video has to be decoded again."""
        self.refusal: Refusal | None = None
        self._allowance = allowance
        self._taken_bytes = 0
        self._frames: list[Tensor] = []
        self._frame_index: list[NDArray[np.int64]] = []

    def take(self, frame_index: NDArray[np.int64], frames: Tensor) -> list[FullClip]:
        """Hold what the view makes of every frame: uint8 [k, 3, h, w]; no clip is full by that."""
        view = self.extractor.view
        if self.decode_again or isinstance(view, ClipView):
            return []
        with torch.inference_mode():
            seen = view(frames)
        needed = seen[0].nbytes * len(self.opened.timeline) - self._taken_bytes
        if needed > 0:
            if self._taken_bytes + needed > RETAINED_BYTES or not self._allowance.take(needed):
                self.decode_again = True
                self.forget()
                return []
            self._taken_bytes += needed
        # A view that changes nothing gives frames that are about to be overwritten; one that cuts
        # keeps all that it was cut from.
        self._frames.append(seen.clone() if _is_a_part(seen, frames) else seen)
        self._frame_index.append(frame_index)
        return []

    def refuse(self, refusal: Refusal) -> None:
        """There will be no feature."""
        self.refusal = refusal
        self.forget()

    def forget(self) -> None:
        """Let go what is held, so that other videos find room."""
        self._frames.clear()
        self._frame_index.clear()
        self._allowance.give_back(self._taken_bytes)
        self._taken_bytes = 0

    def chosen(self, motion: NDArray[np.float32]) -> tuple[Assembly, list[FullClip]]:
        """What takes the frames that motion [t] chooses, and the clips that held ones fill.

        Raises:
            InvalidFeatureError: if none can be chosen.
        """
        sampling = self.extractor.sampling
        assert isinstance(sampling, MotionSampling)
        clips = sampling.clips_by_motion(self.opened.timeline, motion)
        assembly = Assembly(self.opened, self.extractor, self.specs, clips)
        full: list[FullClip] = []
        for frame_index, frames in zip(self._frame_index, self._frames, strict=True):
            full += assembly.take(frame_index, frames, viewed=True)
        self.forget()
        return assembly, full


def _is_a_part(seen: Tensor, frames: Tensor) -> bool:
    storage = seen.untyped_storage()
    return storage.nbytes() > seen.nbytes or (
        storage.data_ptr() == frames.untyped_storage().data_ptr()
    )
