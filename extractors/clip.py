"""CLIP ViT-B/32: the pooled embedding of key frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from extractors.base import ClipFn, Extractor, Output
from extractors.sampling import KeyFrames
from extractors.views import CLIP_MEAN, CLIP_STD, ShortSideCrop, normalise
from extractors.weights import (
    RANDOM,
    WeightFile,
    check_keys,
    find_weights,
    load_state_dict,
    random_weights,
    weights_identity,
)

_ARCHITECTURE = "ViT-B-32-quickgelu"  # OpenAI trained with QuickGELU; plain ViT-B-32 has GELU
_FILE = WeightFile(
    choice="openai",
    url="https://huggingface.co/timm/vit_base_patch32_clip_224.openai/resolve/main/open_clip_model.safetensors",
    save_as="vit_base_patch32_clip_224.openai.safetensors",
    publisher="OpenAI, converted by timm",
    licence="MIT",
)
# Sizes that OpenAI's own state dict lists beside the tensors of the network.
_SIZES = ("input_resolution", "context_length", "vocab_size")


@dataclass(frozen=True, kw_only=True)
class Clip(Extractor):
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
    outputs = (Output("embedding", (512,)),)
    batch_clips = 4
    publisher = _FILE.publisher
    licence = _FILE.licence
    trained_on = ("WIT-400M",)

    sampling = KeyFrames()
    view = ShortSideCrop(224, 224, "bicubic")

    def parameters(self) -> dict[str, Any]:
        """As for every extractor, with the weights' sha256 in place of their path."""
        identity = weights_identity(self.weights, _FILE, extractor=self.name)
        return {**super().parameters(), "weights": identity}

    def build(self, device: torch.device) -> ClipFn:
        """The image tower.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        network = self._network().to(device).eval().requires_grad_(False)

        def embed(clips: Tensor) -> Mapping[str, Tensor]:
            embedding = network(normalise(clips[:, 0], CLIP_MEAN, CLIP_STD))
            return {"embedding": embedding[:, None]}

        return embed

    def _network(self) -> torch.nn.Module:
        import open_clip

        configuration = open_clip.get_model_config(_ARCHITECTURE)
        if self.weights == RANDOM:
            with random_weights():
                return open_clip.CLIP(**configuration).visual
        path = find_weights(self.weights, _FILE, extractor=self.name)
        state = load_state_dict(path, _FILE)
        state = {key: value.float() for key, value in state.items() if key not in _SIZES}
        with torch.device("meta"):
            model = open_clip.CLIP(**configuration)
        check_keys(model.state_dict(), state, path)
        model.load_state_dict(state, assign=True)
        return model.visual
