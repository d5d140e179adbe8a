"""Three tiers of a pristine video: enlarged from a quarter, restored from it, and as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from vqbank.extractors.base import IMPLIED, ClipFn, Output
from vqbank.extractors.clip_towers import (
    CONTEXT,
    EMBEDDING,
    OPENAI_B32,
    TINY_TOWERS,
    architecture,
    published,
    tokens_of,
)
from vqbank.extractors.restoration import RestoringExtractor, cropped, reduced, restored
from vqbank.extractors.sampling import ContinuousClips
from vqbank.extractors.tail import open_clip_text
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, CROPPING, Squash, normalise
from vqbank.extractors.weights import RANDOM, TINY, find_weights, weights_identity
from vqbank.store.errors import InvalidFeatureError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vqbank.store.tail import Tail

_FRAMES = 7  # of a septuplet of Vimeo-90K
_TIERS = 3
_WORDS = (
    "excellent", "mediocre", "terrible", "good", "fair", "poor", "bad", "slightly better",
    "slightly worse",
)  # fmt: skip
PROMPTS = tuple(
    prompt
    for word in _WORDS
    for prompt in (" ".join([*["X"] * 16, word]), f"a photo of a {word} quality video")
)
"""Those of RAM-VQA's table IV: what stands in place of the Xs is learnt, or nothing is."""


@dataclass(frozen=True, slots=True)
class WholeFrames:
    """Frames at their own size, without what is too much for a multiple of four."""

    def __call__(self, frames: Tensor) -> Tensor:
        """uint8 [k, 3, h, w], h and w multiples of four.

        Raises:
            InvalidFeatureError: if frames have less than four rows or columns.
        """
        height, width = (cropped(side) for side in frames.shape[-2:])
        if min(height, width) == 0:
            raise InvalidFeatureError(
                f"frames of {frames.shape[-1]} x {frames.shape[-2]} are too small for tiers: it "
                "needs 4 x 4"
            )
        return frames[..., :height, :width]


@dataclass(frozen=True, kw_only=True)
class Tiers(RestoringExtractor):
    """CLIP embeddings of a pristine video at three levels of quality: what RAM-VQA's prompts learn.

    Of every clip of seven frames: V_b, reduced to a quarter of height and width and enlarged again,
    both bicubic; V_m, enlarged by RealBasicVSR; V_g, as it is.  Tiers are rounded to bytes, become
    squares of 224 as the aesthetic branch sees frames (bicubic, aspect ratio not kept), and go
    through CLIP ViT-B/32's image tower.
    """

    weights: str = "reds"
    """"reds", "random", "random-tiny", or the path of a checkpoint of mmediting, mmagic or the
    authors, of which `generator_ema.*` is used."""
    clip: str = field(default="openai", metadata=IMPLIED)
    """Weights of CLIP ViT-B/32: "openai", or the path of a file with the whole CLIP under
    open_clip's keys.  With weights "random" or "random-tiny" CLIP is that, too."""
    clips: Annotated[int, Field(ge=1)] = field(default=1, metadata=IMPLIED)
    """Of a video, evenly spread, a row each."""
    prompts: tuple[str, ...] = field(default=PROMPTS, compare=False)
    """Those whose tokens the tail keeps.  No row depends on them."""

    name = "tiers"
    version = 1

    @property
    def offers(self) -> tuple[Output, ...]:
        """`embedding` [3, 7, 512]: of V_b, V_m and V_g, frame by frame, not of unit length."""
        shape = (_TIERS, _FRAMES, EMBEDDING)
        return (Output("embedding", shape, identity=self._clip_identity),)

    def _clip_identity(self) -> Mapping[str, Any]:
        if self.is_random:
            return {"clip": self.weights}
        return {"clip": weights_identity(self.clip, OPENAI_B32, extractor=self.name)}

    @property
    def sampling(self) -> ContinuousClips:
        """Clips of consecutive frames, evenly spread; a video of seven frames has one."""
        return ContinuousClips(_FRAMES, self.clips)

    @property
    def view(self) -> WholeFrames:
        """Whole frames."""
        return WholeFrames()

    def described_view(self) -> Any:
        """With the squares that CLIP takes, which are made of whole frames later."""
        from vqbank.extractors.base import describe

        return {"frames": describe(self.view), "squares": describe(self._squares)}

    @property
    def _squares(self) -> Squash:
        size = TINY_TOWERS["vision_cfg"]["image_size"] if self.tiny else 224
        return Squash(size, size, "bicubic")

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Sizes of CLIP's towers, in open_clip's words."""
        return TINY_TOWERS if self.tiny else published("ViT-B-32-quickgelu")

    def load_clip(self) -> torch.nn.Module:
        """The whole CLIP, on the CPU.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        import torch

        from vqbank.extractors.loading import check_keys, random_weights, stream_state_dict

        if self.weights in (RANDOM, TINY):
            with random_weights():
                return architecture(self.configuration)
        path = find_weights(self.clip, OPENAI_B32, extractor=f"{self.name}'s clip")
        state = {key: value.float() for key, value in stream_state_dict(path, OPENAI_B32)}
        with torch.device("meta"):
            network = architecture(self.configuration)
        check_keys(network.state_dict(), state, path)
        network.load_state_dict(state, assign=True)
        return network

    @property
    def modules(self) -> tuple[str, ...]:
        """Both networks."""
        return (*super().modules, "open_clip", *CROPPING)

    def build(self, device: torch.device) -> ClipFn:
        """Both networks.

        Raises:
            WeightsError: as `load` and `load_clip`.
        """
        import torch

        network, squares = self.load().to(device), self._squares
        tower: Any = self.load_clip()
        tower = tower.visual.to(device).eval().requires_grad_(False)

        def rows(clips: Tensor) -> Mapping[str, Tensor]:
            found = [
                torch.stack([tower(normalise(squares(tier), CLIP_MEAN, CLIP_STD)) for tier in made])
                for made in (tiers(network, clip) for clip in clips)
            ]
            return {"embedding": torch.stack(found)[:, None]}

        return rows

    @property
    def cut_outputs(self) -> tuple[str, ...]:
        """The embeddings, with which texts are compared."""
        return ("embedding",)

    @property
    def tail_prompts(self) -> tuple[str, ...]:
        """The prompts."""
        return self.prompts

    def tail(self, output: str) -> Tail:
        """The text tower, and the prompts' tokens.

        Raises:
            WeightsError: as `load_clip`.
        """
        from vqbank.store.tail import Tail

        sizes = self.configuration["text_cfg"]
        text = open_clip_text(
            self.load_clip().state_dict(),
            layers=sizes["layers"],
            width=sizes["width"],
            heads=sizes["heads"],
            hidden=4 * sizes["width"],
            context=sizes["context_length"],
            vocabulary=sizes["vocab_size"],
            activation="quick_gelu",
            embedding=EMBEDDING,
        )
        numbers = tokens_of(self.prompts, CONTEXT)
        return Tail({"text": text}, dict(zip(self.prompts, numbers.tolist(), strict=True)))


def tiers(network: Any, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V_b, V_m and V_g, uint8 [f, 3, h, w] each.

    Args:
        network: from `Tiers.load`.
        frames: uint8 [f, 3, h, w], h and w multiples of four.
    """
    import torch
    from torch.nn import functional

    size = frames.shape[-2:]
    small = torch.cat([reduced(frame[None] / 255) for frame in frames])
    enlarged = functional.interpolate(small, size=size, mode="bicubic", align_corners=False)
    again = torch.stack(list(restored(network, frames)))
    worst, middle = ((255 * one.clamp(0, 1)).round().to(torch.uint8) for one in (enlarged, again))
    return worst, middle, frames
