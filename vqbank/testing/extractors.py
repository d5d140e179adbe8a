"""What every extractor has to hold, as tests: shapes, identity, rows that nothing else moves."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbank.extractors import EXTRACTORS
from vqbank.extractors.base import ClipFn, Extractor
from vqbank.extractors.sampling import EveryNth, MotionSampling, Timeline
from vqbank.extractors.views import ClipView, ShortSideCrop
from vqbank.store.schema import FeatureSpec

CPU = torch.device("cpu")
DECODER = "pyav"
RATE = 10.0
"""Frames per second of the video of the contract."""


class ExtractorContract:
    """Subclass it, with a fixture `extractor` of scope "class" that gives the one that is meant.

    It stands in EXTRACTORS (of another package: by its entry point), and needs no weights that are
    not at hand: "random-tiny" or "random" for a network.  A fixture `video` of your own replaces
    the one that is made where your extractor wants other frames.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def clip_fn(cls, extractor: Extractor) -> ClipFn:
        """Of the extractor, on the CPU."""
        return extractor.build(CPU)

    @pytest.fixture(scope="class")
    @classmethod
    def video(cls) -> Tensor:
        """uint8 [12, 3, 226, 240]: a second at `RATE` and a bit, just large enough for ours."""
        return drifting_texture(12, 226, 240)

    def test_it_stands_in_the_table_under_its_own_name(self, extractor: Extractor) -> None:
        assert EXTRACTORS[extractor.name] is type(extractor)
        for output, spec in extractor.specs(decoder=DECODER).items():
            assert spec.name == f"{extractor.name}.{output}"

    def test_it_gives_what_it_promises(
        self, extractor: Extractor, clip_fn: ClipFn, video: Tensor
    ) -> None:
        clips, rows = clips_of(extractor, video)
        values = in_batches(extractor, clip_fn, clips)
        specs = extractor.specs(decoder=DECODER)
        assert values.keys() == specs.keys() == {output.name for output in extractor.wanted}
        for name, spec in specs.items():
            assert values[name].shape == (*rows.shape, *spec.shape)
            assert values[name].dtype.is_floating_point
            assert torch.isfinite(values[name]).all()
            kept = values[name][torch.from_numpy(rows >= 0)]
            assert kept.std() > 0 if len(kept) == 1 else kept.std(dim=0).max() > 0

    def test_a_clip_does_not_depend_on_its_batch(
        self, extractor: Extractor, clip_fn: ClipFn, video: Tensor
    ) -> None:
        """Bit for bit: alone among padding, among others, and at any place of a batch."""
        size = extractor.batch_clips
        first = clips_of(extractor, video)[0][0]
        others = torch.stack([first.roll(shift, dims=-1).flip(0) for shift in range(1, size + 1)])
        with torch.inference_mode():
            alone = clip_fn(torch.cat([first[None], torch.zeros_like(others[1:])]))
            for place in {0, size - 1}:
                batch = others.clone()
                batch[place] = first
                for name, rows in clip_fn(batch).items():
                    assert torch.equal(rows[place], alone[name][0])

    def test_threads_and_batch_size_change_no_more_than_rounding(
        self, extractor: Extractor, clip_fn: ClipFn, video: Tensor
    ) -> None:
        """1e-5 of the largest value, in float32: alone or in a batch, on one thread or on two."""
        if getattr(extractor, "compute_dtype", "float32") != "float32":
            extractor = replace(extractor, compute_dtype="float32")  # type: ignore[call-arg]
            clip_fn = extractor.build(CPU)
        first = clips_of(extractor, video)[0][:1]
        batch = first.expand(extractor.batch_clips, *first.shape[1:]).contiguous()
        before = torch.get_num_threads()
        found = {}
        try:
            with torch.inference_mode():
                for threads, clips in itertools.product((1, 2), (first, batch)):
                    torch.set_num_threads(threads)
                    found[threads, len(clips)] = clip_fn(clips)
        finally:
            torch.set_num_threads(before)
        reference = found[1, len(batch)]
        for rows in found.values():
            for name, values in rows.items():
                allowed = 1e-5 * reference[name].abs().max()
                assert (values[0] - reference[name][0]).abs().max() <= allowed

    def test_how_a_clip_lies_in_memory_changes_nothing(
        self, extractor: Extractor, clip_fn: ClipFn, video: Tensor
    ) -> None:
        clips, _ = clips_of(extractor, video)
        channels_first = clips[:1].expand(extractor.batch_clips, *clips.shape[1:]).contiguous()
        channels_last = channels_first.movedim(-3, -1).contiguous().movedim(-1, -3)
        with torch.inference_mode():
            expected = clip_fn(channels_first)
            for name, rows in clip_fn(channels_last).items():
                assert torch.equal(rows, expected[name])

    def test_two_builds_give_the_same_bits(
        self, extractor: Extractor, clip_fn: ClipFn, video: Tensor
    ) -> None:
        clips, _ = clips_of(extractor, video[:1])
        torch.manual_seed(7)  # random weights do not come from the global generator
        again = in_batches(extractor, extractor.build(CPU), clips)
        for name, rows in in_batches(extractor, clip_fn, clips).items():
            assert torch.equal(rows, again[name])

    def test_a_batch_size_is_not_in_the_key(
        self, extractor: Extractor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = extractor.specs(decoder=DECODER)
        monkeypatch.setattr(type(extractor), "batch_clips", 77)
        assert extractor.specs(decoder=DECODER) == before

    @pytest.mark.parametrize(
        "change",
        [{"sampling": EveryNth(7)}, {"view": ShortSideCrop(96, 96)}, {"version": 1000}],
        ids=["sampling", "view", "version"],
    )
    def test_whatever_changes_numbers_is_in_the_key(
        self, extractor: Extractor, change: dict[str, Any]
    ) -> None:
        kind = type(extractor)
        other = type(kind.__name__, (kind,), change)(**vars(extractor))
        assert_all_keys_differ(extractor.specs(decoder=DECODER), other.specs(decoder=DECODER))

    def test_the_decoder_is_in_the_key(self, extractor: Extractor) -> None:
        others = extractor.specs(decoder="decord")
        assert_all_keys_differ(extractor.specs(decoder=DECODER), others)

    def test_the_stored_dtype_can_be_chosen_and_is_in_the_key(self, extractor: Extractor) -> None:
        other = replace(extractor, stored_dtype="bfloat16").specs(decoder=DECODER)
        assert {spec.stored_dtype for spec in other.values()} == {"bfloat16"}
        assert_all_keys_differ(extractor.specs(decoder=DECODER), other)


def drifting_texture(count: int, height: int, width: int) -> Tensor:
    """uint8 [count, 3, height, width]: smooth waves of three colours that move, and grain."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    frames = np.empty((count, 3, height, width), np.uint8)
    for index, channel in itertools.product(range(count), range(3)):
        waves = np.sin((rows + 3 * index) / (9 + 4 * channel)) * np.cos((columns - index) / 17)
        grain = rng.normal(scale=6, size=(height, width))
        frames[index, channel] = np.clip(128 + 90 * waves + grain, 0, 255).round()
    return torch.from_numpy(frames)


def timeline(video: Tensor, rate: float = RATE) -> Timeline:
    """Of a video [n, 3, h, w] of so many frames per second."""
    return Timeline(np.arange(len(video)) / rate, len(video), rate, "v", *video.shape[-2:])


def clips_of(extractor: Extractor, video: Tensor) -> tuple[Tensor, NDArray[np.int64]]:
    """The clips [t, f, 3, h', w'] of a video [n, 3, h, w], and the frame of every row [t, r]."""
    sampling, times = extractor.sampling, timeline(video)
    if isinstance(sampling, MotionSampling):
        motion = np.arange(len(video), dtype=np.float32) % 5
        frames, rows = sampling.clips_by_motion(times, motion)
    else:
        frames, rows = sampling.clips(times)
    return viewed(extractor, video, frames), rows


def viewed(extractor: Extractor, video: Tensor, frames: NDArray[np.int64]) -> Tensor:
    """[t, f, *shape] of clips [t, f] of frame indices."""
    view = extractor.view
    if not isinstance(view, ClipView):
        return view(video)[frames]
    own = [view.of_clip(timeline(video), clip) for clip in range(len(frames))]
    return torch.stack([own[clip](video)[frames[clip]] for clip in range(len(frames))])


def in_batches(extractor: Extractor, clip_fn: ClipFn, clips: Tensor) -> dict[str, Tensor]:
    """Rows [t, r, *shape] by output, from batches of one size, the last one padded."""
    results: list[Mapping[str, Tensor]] = []
    with torch.inference_mode():
        for start in range(0, len(clips), extractor.batch_clips):
            batch = clips[start : start + extractor.batch_clips]
            padding = batch.new_zeros(extractor.batch_clips - len(batch), *batch.shape[1:])
            rows = clip_fn(torch.cat([batch, padding]))
            results.append({name: value[: len(batch)] for name, value in rows.items()})
    return {name: torch.cat([rows[name] for rows in results]) for name in results[0]}


def extract(extractor: Extractor, video: Tensor) -> dict[str, NDArray[Any]]:
    """What a video's features would hold: {output: [t, *shape]}."""
    clips, rows = clips_of(extractor, video)
    values = in_batches(extractor, extractor.build(CPU), clips)
    return {name: value.numpy()[rows >= 0] for name, value in values.items()}


def assert_all_keys_differ(
    one: Mapping[str, FeatureSpec], other: Mapping[str, FeatureSpec]
) -> None:
    """Output by output."""
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].key != other[name].key
