"""CLIP ViT-B/32: the pooled embedding of key frames."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from extractors.base import ClipFn, Output, WeightedExtractor
from extractors.sampling import KeyFrames
from extractors.views import CLIP_MEAN, CLIP_STD, ShortSideCrop, normalise
from extractors.weights import WeightFile

_ARCHITECTURE = "ViT-B-32-quickgelu"  # OpenAI trained with QuickGELU; plain ViT-B-32 has GELU
# Sizes that OpenAI's own state dict lists beside the tensors of the network.
_SIZES = ("input_resolution", "context_length", "vocab_size")


@dataclass(frozen=True, kw_only=True)
class Clip(WeightedExtractor):
    """One image embedding per second of video, before it is scaled to unit length.

    Network: open_clip's ViT-B-32-quickgelu, in float32.  Frames as OpenAI's preprocessing makes
    them: short side to 224, bicubic, centre square, CLIP's mean and standard deviation.
    """

    weights: str = "openai"
    """"openai", "random", or the path of a file with the whole CLIP: open_clip's safetensors, or a
    plain state dict under OpenAI's keys.  Text tower and logit_scale must be there too, so that a
    file of another model is not taken for this one."""

    name = "clip"
    version = 1
    offers = (Output("embedding", (512,)),)
    batch_clips = 4
    files = (
        WeightFile(
            choice="openai",
            url="https://huggingface.co/timm/vit_base_patch32_clip_224.openai/resolve/main/open_clip_model.safetensors",
            save_as="vit_base_patch32_clip_224.openai.safetensors",
            publisher="OpenAI, converted by timm",
            licence="MIT",
            trained_on=("WIT-400M",),
        ),
    )

    sampling = KeyFrames()
    view = ShortSideCrop(224, 224, "bicubic")

    def build(self, device: torch.device) -> ClipFn:
        """The image tower.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        import open_clip

        configuration = open_clip.get_model_config(_ARCHITECTURE)
        whole = self.network(lambda: open_clip.CLIP(**configuration), ignored=_SIZES)
        network = whole.visual.to(device).eval().requires_grad_(False)

        def embed(clips: Tensor) -> Mapping[str, Tensor]:
            embedding = network(normalise(clips[:, 0], CLIP_MEAN, CLIP_STD))
            return {"embedding": embedding[:, None]}

        return embed
