"""LIQE: what a quality-aware CLIP sees in fifteen patches of key frames, against 495 prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vqbank.extractors.base import ClipFn, Output, WeightedExtractor
from vqbank.extractors.clip_towers import (
    CONTEXT,
    EMBEDDING,
    TINY_TOWERS,
    architecture,
    published,
    text_bank,
    text_identity,
)
from vqbank.extractors.sampling import KeyFrames
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, normalise
from vqbank.extractors.weights import WeightFile
from vqbank.store.errors import InvalidFeatureError
from vqbank.store.schema import FeatureSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vqbank.store.text import TextBank

_QUALITIES = ("bad", "poor", "fair", "good", "perfect")
_SCENES = (
    "animal",
    "cityscape",
    "human",
    "indoor",
    "landscape",
    "night",
    "plant",
    "still_life",
    "others",
)
_DISTORTIONS = (
    "jpeg2000 compression",
    "jpeg compression",
    "noise",
    "blur",
    "color",
    "contrast",
    "overexposure",
    "underexposure",
    "spatial",
    "quantization",
    "other",
)
PROMPTS = tuple(
    f"a photo of a {scene} with {distortion} artifacts, which is of {quality} quality"
    for quality in _QUALITIES
    for scene in _SCENES
    for distortion in _DISTORTIONS
)
"""[495]: quality changes slowest, distortion quickest; worded as in the official code, which is not
as in the papers."""

_TRAINED_ON = (
    "WIT-400M",
    "LIVE",
    "CSIQ",
    "KADID-10k",
    "BID",
    "LIVE-C",
    "KonIQ-10k",
)
_TEXT_BATCH = 45  # prompts at once: a divisor of 495


@dataclass(frozen=True, slots=True)
class Patches:
    """Squares of a frame at native size, by the rule of RQ-VQA's copy of LIQE.

    All squares `stride` apart are numbered row by row; those taken are 0, s, 2s, ... with s the
    whole part of their number by `count`.  Where there are fewer than `count`, s is 0: every one is
    the square in the upper left corner.
    """

    side: int = 224
    stride: int = 32
    count: int = 15

    def __call__(self, frames: Tensor) -> Tensor:
        """[k, count, 3, side, side].

        Raises:
            InvalidFeatureError: if a frame is smaller than one square.
        """
        import torch

        height, width = frames.shape[-2:]
        corners = self.stride * self.cells(height, width)
        return torch.stack(
            [
                frames[..., top : top + self.side, left : left + self.side]
                for top, left in corners.tolist()
            ],
            dim=1,
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of all squares of a frame.

        Raises:
            InvalidFeatureError: if there is none.
        """
        if min(height, width) < self.side:
            raise InvalidFeatureError(
                f"frames of {width} x {height} are too small for liqe, which looks at squares of "
                f"{self.side} x {self.side} at native size; leave liqe out for such videos, or "
                "enlarge them first"
            )
        return (height - self.side) // self.stride + 1, (width - self.side) // self.stride + 1

    def cells(self, height: int, width: int) -> NDArray[np.int64]:
        """[count, 2]: row and column in the grid of the squares that are taken.

        Raises:
            InvalidFeatureError: if a frame is smaller than one square.
        """
        rows, columns = self.grid(height, width)
        numbers = np.arange(self.count) * (rows * columns // self.count)
        return np.stack(np.divmod(numbers, columns), axis=1)


@dataclass(frozen=True, kw_only=True)
class Liqe(WeightedExtractor):
    """LIQE (CVPR 2023) as RQ-VQA uses it: what stands behind its score, in float32, and the score.

    `logits` are the official features: exp(logit_scale) times the cosines of a patch with the 495
    prompts, averaged over the patches, with no softmax.  `feature` is the mean of the patches'
    embeddings at unit length, and holds the same in less: logits = scale * values @ feature, with
    `scale` and `values` [495, 512] of the text bank "liqe.text".  `score` is the official one, from
    1 (bad) to 5 (perfect), of frames at native size; LIQE's own benchmark makes large pictures
    smaller first.
    """

    weights: str = "liqe"
    """"liqe", "pyiqa", "random", "random-tiny", or the path of a file like LIQE.pt or liqe_mix.pt.
    The network is the one trained on six data sets; pyiqa's liqe_koniq.pt, which looks the same to
    a program, knows five other prompts only."""

    name = "liqe"
    version = 1
    batch_clips = 1  # fifteen pictures
    has_tiny = True
    files = (
        WeightFile(
            choice="liqe",
            url="https://github.com/zwx8981/LIQE",
            save_as="LIQE.pt",
            publisher="the authors of LIQE",
            licence="MIT",
            trained_on=_TRAINED_ON,
            on_page=True,
        ),
        WeightFile(
            choice="pyiqa",
            url="https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/liqe_mix.pt",
            save_as="liqe_mix.pt",
            publisher="the authors of LIQE, converted by pyiqa",
            licence="MIT",
            trained_on=_TRAINED_ON,
            entry="params",
        ),
    )

    sampling = KeyFrames()
    offers = (
        Output("feature", (EMBEDDING,), stored_dtype="float32"),  # without loss
        Output("logits", (len(PROMPTS),), usual=False),
        Output("score", (1,), stored_dtype="float32", usual=False),
    )

    @property
    def view(self) -> Patches:
        """Fifteen squares of the size that the network takes."""
        return (
            Patches(TINY_TOWERS["vision_cfg"]["image_size"], stride=8) if self.tiny else Patches()
        )

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Sizes of both towers, in open_clip's words: CLIP ViT-B/32 as OpenAI trained it."""
        return TINY_TOWERS if self.tiny else published("ViT-B-32-quickgelu")

    def load(self) -> torch.nn.Module:
        """The network on the CPU, CLIP ViT-B/32 in form, filled with the weights.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        return self.network(lambda: architecture(self.configuration), renamed=_our_keys)

    def text_spec(self) -> FeatureSpec:
        """The identity of the text bank of the prompts.

        Raises:
            WeightsError: if the weights are not at hand.
        """
        from vqbank.store.text import text_spec

        identity = text_identity(self.name, self.version, CONTEXT, self.parameters())
        return text_spec(f"{self.name}.text", PROMPTS, EMBEDDING, identity, **self.origin())

    def text(self, device: torch.device) -> TextBank:
        """The 495 prompts through the text tower, which takes a CPU the better part of a minute.

        Raises:
            WeightsError: as `load`.
        """
        return _text(self, self.parameters()["weights"], device)

    @property
    def modules(self) -> tuple[str, ...]:
        """open_clip."""
        return ("open_clip",)

    def build(self, device: torch.device) -> ClipFn:
        """The image tower, with the text of the prompts where logits or a score are wanted.

        Raises:
            WeightsError: as `load`.
        """
        import torch
        from torch.nn import functional

        tower: Any = self.load().visual
        tower = tower.to(device).eval().requires_grad_(False)
        wanted = {output.name for output in self.wanted}
        text = self.text(device) if wanted & {"logits", "score"} else None
        prompts = None if text is None else torch.from_numpy(text.values).to(device)

        def compare(clips: Tensor) -> Mapping[str, Tensor]:
            patches = normalise(clips[:, 0], CLIP_MEAN, CLIP_STD)  # [b, 15, 3, h, w]
            embeddings = functional.normalize(tower(patches.flatten(0, 1)), dim=-1)
            embeddings = embeddings.unflatten(0, patches.shape[:2])
            rows = {"feature": embeddings.mean(dim=1, keepdim=True)}
            if text is not None and prompts is not None:
                logits = (text.scale * embeddings @ prompts.T).mean(dim=1, keepdim=True)
                rows |= {"logits": logits, "score": scores(logits)}
            return {name: values for name, values in rows.items() if name in wanted}

        return compare


def scores(logits: Tensor) -> Tensor:
    """Official scores [..., 1] of logits [..., 495]: the expected quality, bad being 1, perfect 5.

    As `do_batch` and what follows it in LIQE's demo.py (github.com/zwx8981/LIQE): a softmax over
    all prompts of the mean over patches, summed over scenes and distortions.
    """
    import torch

    qualities = logits.softmax(dim=-1).unflatten(-1, (len(_QUALITIES), -1)).sum(dim=-1)
    values = torch.arange(1, len(_QUALITIES) + 1, dtype=logits.dtype, device=logits.device)
    return (qualities @ values)[..., None]


@lru_cache(maxsize=1)
def _text(extractor: Liqe, weights: str, device: torch.device) -> TextBank:
    """Remembered, as both the bank and the network ask for it; `weights` is their sha256."""
    network: Any = extractor.load().to(device).eval()
    return text_bank(
        partial(network.encode_text, normalize=True),
        network.logit_scale,
        PROMPTS,
        context=CONTEXT,
        precision=extractor.precision(device),
        batch=_TEXT_BATCH,
    )


def _our_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under OpenAI's keys, which are the authors'; pyiqa's have a prefix."""
    return {key.removeprefix("clip_model."): value.float() for key, value in state.items()}
