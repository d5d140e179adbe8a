"""What video super-resolution adds to a video: fragments of the residual, and of the video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vqbank.extractors.base import IMPLIED, ClipFn, Output
from vqbank.extractors.clip_towers import OPENAI_B32
from vqbank.extractors.fragments import Fragments
from vqbank.extractors.restoration import SCALE, RestoringExtractor, cropped, restored
from vqbank.extractors.sampling import Clips, ContinuousClips, Timeline
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, View, normalise
from vqbank.extractors.weights import RANDOM, find_weights, weights_identity
from vqbank.store.errors import InvalidFeatureError
from vqbank.store.schema import SideSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vqbank.extractors.networks.real_basic_vsr import RealBasicVsr

_FRAMES = 32  # of a clip
_GRID = 7
_FRAGMENT = 32  # pixels
_SIDE = _GRID * _FRAGMENT
_EMBEDDING = "visual.conv1.weight"
_TOKENS = ("fragment-tokens", "residual-tokens")


@dataclass(frozen=True, slots=True)
class FramesWithOffsets:
    """Whole frames, and below them the offsets of the clip's fragments.

    Super-resolution needs the whole frame, and fragments are cut after it, so that the offsets of a
    clip have to come along with its frames.  Rows and columns that are too many for a multiple of
    four are cut off below and to the right.
    """

    fragments: Fragments

    def offsets(self, timeline: Timeline, clip: int) -> NDArray[np.int16]:
        """[grid, grid, 2]: those of the cropped frames.

        Raises:
            InvalidFeatureError: if frames have less than four rows or columns.
        """
        height, width = (cropped(side) for side in (timeline.height, timeline.width))
        if min(height, width) == 0:
            raise InvalidFeatureError(
                f"frames of {timeline.width} x {timeline.height} are too small for residual: "
                f"it needs {SCALE} x {SCALE}"
            )
        kept = replace(timeline, height=height, width=width)
        return self.fragments.offsets(kept, clip).astype("<i2")

    def of_clip(self, timeline: Timeline, clip: int) -> View:
        """uint8 [k, 3, h + rows of the note, w], h and w multiples of four."""
        return partial(_with_note, note=self.offsets(timeline, clip))

    def split(self, frames: Tensor) -> tuple[Tensor, NDArray[np.int64]]:
        """The frames of one clip without the note [f, 3, h, w], and the offsets."""
        shape = (self.fragments.grid, self.fragments.grid, 2)
        length = 2 * int(np.prod(shape))  # bytes
        height = frames.shape[-2] - _note_rows(length, frames.shape[-1])
        note = frames[0, :, height:].flatten()[:length].cpu().numpy()
        return frames[:, :, :height], note.view("<i2").reshape(shape).astype(np.int64)


def _with_note(frames: Tensor, note: NDArray[np.int16]) -> Tensor:
    import torch

    height, width = (cropped(side) for side in frames.shape[-2:])
    content = np.frombuffer(note.tobytes(), np.uint8)
    below = frames.new_zeros(3, _note_rows(len(content), width), width)
    below.view(-1)[: len(content)] = torch.from_numpy(content.copy()).to(frames.device)
    kept = frames[..., :height, :width]
    return torch.cat([kept, below.expand(len(frames), *below.shape)], dim=-2)


def _note_rows(length: int, width: int) -> int:
    return -(-length // (3 * width))


@dataclass(frozen=True, kw_only=True)
class Residual(RestoringExtractor):
    """One row per clip of 32 consecutive frames: what RAM-VQA's technical branch starts from.

    The video V is reduced to a quarter of its height and width (bicubic, antialiased), enlarged
    again by RealBasicVSR, and clipped to 0 ... 1; the residual is what comes out, less V.
    Fragments of both are cut at the same places, 7 x 7 of 32 x 32 pixels, the same in all frames of
    a clip; where the short side is below 224 both are enlarged first.  Rows and columns that are
    too many for a multiple of four are cut off below and to the right.

    The first three rows are for testing, evenly spread; `train_clips` random ones follow.

    A clip costs 0.41 million multiply-adds per pixel and frame: 6.8 x 10^12 for 32 frames of 540p,
    four times as many for 1080p.  That is minutes of a CPU core for a clip of 540p; of memory it
    takes 0.9 GB there, beyond the network.
    """

    weights: str = "reds"
    """"reds", "random", "random-tiny", or the path of a checkpoint of mmediting, mmagic or the
    authors, of which `generator_ema.*` is used."""
    patch_embedding: str = field(default="openai", metadata=IMPLIED)
    """Weights of `fragment-tokens` and `residual-tokens`, in the key of these alone: "openai",
    "random", or the path of a CLIP ViT-B/32 under open_clip's keys.  Where `weights` are random,
    "openai" means random ones too: who asks for those has none at hand."""
    train_clips: Annotated[int, Field(ge=0)] = field(default=0, metadata=IMPLIED)
    """Rows from random starts; RAM-VQA trains on clips from random starts, for which four are a
    fair number."""
    stream: str = field(default="fragments", metadata=IMPLIED)
    """Name of the random stream that, with `seed`, offsets and starts are drawn from; extractors
    that name the same one share their offsets."""
    seed: int = field(default=0, metadata=IMPLIED)

    name = "residual"
    version = 1

    @property
    def offers(self) -> tuple[Output, ...]:
        """Statistics of the residual; and, asked for by name, fragments or their tokens.

        - `statistics` [frames, 12]: of the residual's fragments in every frame, -1 to 1: mean,
          standard deviation, mean size and largest size of red, green and blue.
        - `fragments` uint8 [frames, 3, 224, 224]: of the video.
        - `residuals` int16 [frames, 3, 224, 224]: of the residual, -255 to 255.  The sum of both is
          the fragments of the enlarged video, where nothing had to be enlarged to 224.
        - `fragment-tokens`, `residual-tokens` [frames, 49, 768]: of these by CLIP ViT-B/32's patch
          embedding, one token per fragment.  Video normalised by CLIP's statistics, the residual
          -1 to 1.

        All have the frames of the clip and the offsets of its fragments beside them.
        """
        side = (
            SideSpec("frames", (_FRAMES,), "int32"),
            SideSpec("offsets", (_GRID, _GRID, 2), "int16"),
        )
        mosaic, tokens = (_FRAMES, 3, _SIDE, _SIDE), (_FRAMES, _GRID * _GRID, 768)
        return (
            Output("statistics", (_FRAMES, 12), "float32", side),
            Output("fragments", mosaic, "uint8", side, usual=False),
            Output("residuals", mosaic, "int16", side, usual=False),
            *(
                Output(name, tokens, side=side, usual=False, identity=self._embedding_identity)
                for name in _TOKENS
            ),
        )

    def _embedding_identity(self) -> Mapping[str, Any]:
        file = weights_identity(self._embedding_choice, OPENAI_B32, extractor="clip")
        return {"patch_embedding": file}

    @property
    def _embedding_choice(self) -> str:
        default = self.patch_embedding == OPENAI_B32.choice
        return RANDOM if self.is_random and default else self.patch_embedding

    @property
    def sampling(self) -> ContinuousClips:
        """Three clips spread evenly, then `train_clips` from random starts."""
        stream = f"{self.stream}-starts"
        return ContinuousClips(_FRAMES, 3, self.train_clips, stream, self.seed)

    @property
    def view(self) -> FramesWithOffsets:
        """Whole frames, and where their fragments lie."""
        return FramesWithOffsets(
            Fragments(_GRID, _FRAGMENT, self.stream, self.seed, small_videos="corrected")
        )

    def side(self, timeline: Timeline, clips: Clips) -> Mapping[str, NDArray[Any]]:
        """The frames of each clip and the offsets of its fragments.

        Raises:
            InvalidFeatureError: if frames have less than four rows or columns.
        """
        offsets = [self.view.offsets(timeline, clip) for clip in range(len(clips.frames))]
        return {"frames": clips.frames[:, None], "offsets": np.stack(offsets)[:, None]}

    def build(self, device: torch.device) -> ClipFn:
        """The network, and the patch embedding where tokens are asked for.

        Raises:
            WeightsError: if a file is missing, unsafe or of another network.
        """
        import torch

        network = self.load().to(device)
        wanted = {output.name for output in self.wanted}
        embedding = self._embedding().to(device) if wanted & set(_TOKENS) else torch.empty(0)

        def rows(clip: Tensor) -> Mapping[str, Tensor]:
            frames, offsets = self.view.split(clip)
            cut = partial(self.view.fragments.cut, offsets=offsets)
            levels = torch.cat(
                [cut(255 * residual[None]).round() for residual in residuals(network, frames)]
            )
            found = {"statistics": statistics(levels / 255), "residuals": levels.to(torch.int16)}
            if wanted & {"fragments", "fragment-tokens"}:
                found["fragments"] = cut(frames)
            if "fragment-tokens" in wanted:
                pixels = normalise(found["fragments"], CLIP_MEAN, CLIP_STD)
                found["fragment-tokens"] = tokens(pixels, embedding)
            if "residual-tokens" in wanted:
                found["residual-tokens"] = tokens(levels / 255, embedding)
            return {name: found[name] for name in wanted}

        def rows_of_clips(clips: Tensor) -> Mapping[str, Tensor]:
            found = [rows(clip) for clip in clips.contiguous()]
            return {name: torch.stack([one[name] for one in found])[:, None] for name in wanted}

        return rows_of_clips

    def _embedding(self) -> Tensor:
        """The weight of the patch embedding [768, 3, 32, 32], which has no bias."""
        import torch

        from vqbank.extractors.loading import check_keys, random_weights, stream_state_dict

        if self._embedding_choice == RANDOM:
            with random_weights():
                return torch.nn.Conv2d(3, 768, _FRAGMENT, _FRAGMENT, bias=False).weight.detach()
        path = find_weights(self._embedding_choice, OPENAI_B32, extractor="clip")
        state = {
            key: value.float()
            for key, value in stream_state_dict(path, OPENAI_B32)
            if key == _EMBEDDING
        }
        check_keys({_EMBEDDING: torch.empty(768, 3, _FRAGMENT, _FRAGMENT)}, state, path)
        return state[_EMBEDDING]


def residuals(network: RealBasicVsr, frames: Tensor) -> Iterator[Tensor]:
    """What super-resolution adds to each frame of a clip: float32 [3, h, w], -1 to 1.

    Args:
        network: from `Residual.load`.
        frames: uint8 [f, 3, h, w], h and w multiples of four; all of them, because a frame's result
            depends on those before and after it.
    """
    for frame, again in zip(frames, restored(network, frames), strict=True):
        yield again - frame / 255


def statistics(values: Tensor) -> Tensor:
    """[f, 3, h, w] to [f, 12]: mean, standard deviation, mean size, largest size; each of 3."""
    import torch

    sizes = values.abs()
    spatial = (2, 3)
    columns = [
        values.mean(spatial),
        values.std(spatial, correction=0),
        sizes.mean(spatial),
        sizes.amax(spatial),
    ]
    return torch.cat(columns, dim=1)


def tokens(pixels: Tensor, embedding: Tensor) -> Tensor:
    """Mosaics [f, 3, h, w] to [f, fragments, d], row by row of the mosaic."""
    from torch.nn import functional

    maps = functional.conv2d(pixels, embedding, stride=embedding.shape[-1])
    return maps.flatten(2).transpose(1, 2)
