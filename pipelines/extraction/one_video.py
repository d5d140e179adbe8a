"""The way of one video, from its file to the bank; it reads from top to bottom.

Which features are missing?  None: no decode, no model.  Else the union of all wanted frames is
decoded in order in bounded chunks; each chunk goes to the device once; every extractor's view takes
its frames as they pass; full clips of many videos fill one batch per extractor; rows come back, and
go to one writer per feature; a shard counts once it is committed.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbank.extractors.base import Extractor
from vqbank.extractors.isolated import Chunk, Decoder, End
from vqbank.extractors.sampling import MotionSampling
from vqbank.extractors.video import Probe
from vqbank.pipelines.extraction.assembly import Assembly, HeldFrames, OpenVideo
from vqbank.pipelines.extraction.banking import fingerprint
from vqbank.pipelines.extraction.refusals import (
    Refusal,
    is_out_of_memory,
    is_refusal,
    one_line,
)
from vqbank.pipelines.extraction.resources import Resources
from vqbank.pipelines.extraction.wanted import Outputs, choose_by_motion
from vqbank.store.errors import (
    ChangedVideoError,
    DamagedShardError,
    DecodeError,
    DecoderDiedError,
    InvalidFeatureError,
)
from vqbank.store.schema import FeatureSpec, Fingerprint, Video


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one video."""

    video: Video
    failures: Mapping[str, str]
    """Reason by feature key; empty if everything that was asked for is banked."""
    cached: bool
    """Whether nothing had to be done."""
    frames: int = 0
    """Frames that were decoded for it and looked at."""


class OneVideo:
    """One video of a run, among others that share decoders, threads, networks and the disk."""

    def __init__(self, video: Video, resources: Resources, *, attempt: str | None = None) -> None:
        """Nothing is looked at yet.

        Args:
            video: Which.
            resources: What it shares.
            attempt: Told to the ledger before the video is opened.
        """
        self.video = video
        self._resources = resources
        self._attempt = attempt
        self._failures: dict[str, str] = {}
        self._frames = 0

    async def extract(self, decoder: Decoder) -> Outcome:
        """Bank what is missing.

        Args:
            decoder: A free one; it is put back as soon as the video is decoded, while others still
                fill the batches in which its last clips wait.

        Raises:
            BankError: if the bank cannot be written.
            WeightsError: if a network cannot be built.
        """
        resources = self._resources
        try:
            content = fingerprint(self.video.path)
            lacking = resources.wanted.lacking(self.video, content)
            if content is not None:
                resources.marks.restored(self.video, resources.wanted.specs)
            if not lacking:
                return Outcome(self.video, {}, cached=True)
            assemblies, held = await self._first_pass(decoder, content, lacking)
        except ChangedVideoError as error:
            self._fail(resources.wanted.specs, Refusal(str(error)), changed=True)
            return Outcome(self.video, self._failures, cached=False)
        finally:
            resources.put_back(decoder)
        async with asyncio.TaskGroup() as banking:
            for assembly in assemblies:
                banking.create_task(self._bank(assembly))
            for assembly in await self._chosen_by_motion(assemblies, held):
                banking.create_task(self._bank(assembly))
        return Outcome(self.video, self._failures, cached=False, frames=self._frames)

    async def _first_pass(
        self, decoder: Decoder, content: Fingerprint | None, lacking: Mapping[Extractor, Outputs]
    ) -> tuple[list[Assembly], list[HeldFrames]]:
        """Open the video and decode what is wanted of it; gives what has taken frames."""
        if self._attempt is not None:
            self._resources.marks.begun(self.video, self._attempt)
        try:
            probe = await self._open(decoder)
            if content is None:
                path = self.video.path
                raise DecodeError(f"{path} could not be read, and then could: try again")
            opened = OpenVideo(self.video, content, probe)
            assemblies, held = self._plan(opened, lacking)
        except Exception as error:
            damage = self._damage(error, decoder)
            if damage is None:
                raise
            for outputs in lacking.values():
                self._fail(outputs.values(), damage)
            return [], []
        if assemblies:
            await self._decode(decoder, opened, assemblies, held)
        return assemblies, held

    async def _open(self, decoder: Decoder) -> Probe:
        decoder.open(self.video.path)
        probe = await self._resources.answer(decoder)
        assert isinstance(probe, Probe)
        return probe

    def _plan(
        self, opened: OpenVideo, lacking: Mapping[Extractor, Outputs]
    ) -> tuple[list[Assembly], list[HeldFrames]]:
        """Which frames does each extractor want?  Who chooses by motion may have to hold all."""
        wanted = self._resources.wanted
        motion, damage = None, ""
        if choose_by_motion(lacking) and wanted.motion not in lacking:
            try:
                motion = wanted.banked_motion(self.video)
            except DamagedShardError as error:
                damage = str(error)
        assemblies, held = [], []
        for extractor, outputs in lacking.items():
            sampling = extractor.sampling
            try:
                if not isinstance(sampling, MotionSampling):
                    clips = sampling.clips(opened.timeline)
                elif damage:
                    raise InvalidFeatureError(f"no motion series: {damage}")
                elif motion is not None:
                    clips = sampling.clips_by_motion(opened.timeline, motion)
                else:
                    held.append(HeldFrames(opened, extractor, outputs, self._resources.allowance))
                    continue
                assemblies.append(Assembly(opened, extractor, outputs, clips))
            except InvalidFeatureError as error:
                self._fail(outputs.values(), Refusal(str(error)))
        return assemblies, held

    async def _decode(
        self,
        decoder: Decoder,
        opened: OpenVideo,
        assemblies: Sequence[Assembly],
        held: Sequence[HeldFrames] = (),
        *,
        again: bool = False,
    ) -> None:
        """One pass: let the wanted frames pass all that take some, in order, chunk by chunk."""
        resources, damage = self._resources, None
        wanted = np.unique(np.concatenate([one.clips.frames.reshape(-1) for one in assemblies]))
        try:
            if again:
                await self._open(decoder)
            resources.counts.decoded_videos += 1
            decoder.decode(wanted)
            while isinstance(answer := await resources.answer(decoder), Chunk):
                await self._look(answer, [*assemblies, *held])
                decoder.release(answer)
            assert isinstance(answer, End)
            opened.shortfall = max(answer.shortfall, opened.shortfall)
        except Exception as error:
            damage = self._damage(error, decoder)
            if damage is None:
                raise
            # Damage costs what wanted frames at or after it; where the decoder died, nobody knows
            # how far it would have come.
            for assembly in assemblies:
                if assembly.clips_to_fill or isinstance(error, DecoderDiedError):
                    assembly.refuse(damage)
        resources.marks.decoded(opened, damage)

    async def _look(self, chunk: Chunk, takers: Sequence[Assembly | HeldFrames]) -> None:
        """Let everybody take the frames of a chunk; ends when nobody looks at it any more."""
        self._frames += len(chunk.frame_index)
        self._resources.counts.decoded_frames += len(chunk.frame_index)
        frames = torch.from_numpy(chunk.pictures).to(self._resources.device).permute(0, 3, 1, 2)
        await asyncio.gather(
            *(
                self._view(taker, chunk.frame_index, frames)
                for taker in takers
                if taker.refusal is None
            )
        )

    async def _view(
        self, taker: Assembly | HeldFrames, frame_index: NDArray[np.int64], frames: Tensor
    ) -> None:
        """Let one extractor's view see frames; clips that are full go to its network."""
        try:
            clips = await self._resources.threads(taker.take, frame_index, frames)
        except Exception as error:
            if not is_refusal(error):
                error.add_note(f"in the view of {taker.extractor.name}, at {self.video.id}")
                raise
            taker.refuse(Refusal(one_line(error)))
        else:
            self._resources.networks.add(clips)

    async def _chosen_by_motion(
        self, assemblies: Sequence[Assembly], held: Sequence[HeldFrames]
    ) -> list[Assembly]:
        """What takes the frames that the motion series chooses, once this run has computed it."""
        if not held:
            return []
        try:
            motion = await self._motion(assemblies)
        except InvalidFeatureError as error:
            for frames in held:
                frames.forget()
                self._fail(frames.specs.values(), frames.refusal or Refusal(str(error)))
            return []
        chosen, unfilled = [], []
        for frames in held:
            if frames.refusal is not None:
                self._fail(frames.specs.values(), frames.refusal)
                continue
            try:
                assembly, clips = frames.chosen(motion)
            except InvalidFeatureError as error:
                frames.forget()
                self._fail(frames.specs.values(), Refusal(str(error)))
                continue
            self._resources.networks.add(clips)
            chosen.append(assembly)
            if frames.decode_again:
                unfilled.append(assembly)
        if unfilled:
            self._resources.counts.extra_passes += 1
            decoder = await self._resources.decoders.get()
            try:
                await self._decode(decoder, unfilled[0].opened, unfilled, again=True)
            finally:
                self._resources.put_back(decoder)
        return chosen

    async def _motion(self, assemblies: Sequence[Assembly]) -> NDArray[np.float32]:
        """The motion series [t] of the video, which this run computes.

        Raises:
            InvalidFeatureError: if it cannot be had.
        """
        motion = self._resources.wanted.motion
        of_motion = next((one for one in assemblies if one.extractor == motion), None)
        if of_motion is None:
            raise InvalidFeatureError("no motion series: it could not be begun")
        await of_motion.settled.wait()
        if of_motion.refusal is not None:
            reason = of_motion.refusal.reason.removeprefix(f"{self.video.id}: ")
            raise InvalidFeatureError(f"no motion series: {reason}")
        return of_motion.feature("series").values[:, 0]

    async def _bank(self, assembly: Assembly) -> None:
        """Write one extractor's features once all rows are there, or say why there are none."""
        await assembly.settled.wait()
        if assembly.refusal is not None:
            self._fail(assembly.specs.values(), assembly.refusal)
            return
        for output, reason in (await self._resources.banking.bank(assembly)).items():
            self._fail([assembly.specs[output]], Refusal(reason))
        assembly.forget()

    def _damage(self, error: Exception, decoder: Decoder) -> Refusal | None:
        """What an error while decoding says of the video; None if the video is not to blame."""
        if isinstance(error, DecodeError):
            died = isinstance(error, DecoderDiedError)
            return Refusal(str(error), traceback=decoder.traceback if died else "")
        if not is_out_of_memory(error):
            error.add_note(f"at {self.video.id}")
            return None
        decoder.close()  # it may be in the middle of the video
        return Refusal(f"{self.video.path}: there is no memory to look at it: {one_line(error)}")

    def _fail(
        self, specs: Iterable[FeatureSpec], refusal: Refusal, *, changed: bool = False
    ) -> None:
        new = [spec for spec in specs if spec.key not in self._failures]
        self._failures |= self._resources.marks.failed(self.video, new, refusal, changed=changed)
