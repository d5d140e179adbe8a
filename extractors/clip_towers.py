"""CLIP's two towers as open_clip builds them: sizes, files, and prompts through the text tower."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vqbank.extractors.weights import WeightFile

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vqbank.store.text import TextBank

CONTEXT = 77
"""Tokens of a prompt of OpenAI's models."""
EMBEDDING = 512
"""Width of what both towers of ViT-B end with."""
TINY_TOWERS: Mapping[str, Any] = {
    "embed_dim": EMBEDDING,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}
"""A tiny ViT, as wide as ViT-B where it ends, so that its rows fit heads."""
OPENAI_B32 = WeightFile(
    choice="openai",
    url="https://huggingface.co/timm/vit_base_patch32_clip_224.openai/resolve/main/open_clip_model.safetensors",
    save_as="vit_base_patch32_clip_224.openai.safetensors",
    publisher="OpenAI, converted by timm",
    licence="MIT",
    trained_on=("WIT-400M",),
    sha256="e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
    size=605_143_284,
)
OPENAI_B16 = WeightFile(
    choice="openai",
    url="https://huggingface.co/timm/vit_base_patch16_clip_224.openai/resolve/main/open_clip_model.safetensors",
    save_as="vit_base_patch16_clip_224.openai.safetensors",
    publisher="OpenAI, converted by timm",
    licence="MIT",
    trained_on=("WIT-400M",),
)


def published(model: str) -> Mapping[str, Any]:
    """Sizes of both towers of a model of open_clip, in its words.

    Args:
        model: one that open_clip has, such as "ViT-B-32-quickgelu".
    """
    import open_clip

    return open_clip.get_model_config(model)


def architecture(configuration: Mapping[str, Any]) -> nn.Module:
    """The whole CLIP, not filled yet; its image tower is `visual`.

    Args:
        configuration: sizes of both towers, in open_clip's words.
    """
    import open_clip
    import torch

    sizes = dict(configuration)
    custom_text = sizes.pop("custom_text", False)
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    tower = sizes["vision_cfg"]
    if "timm_model_name" in tower:
        sizes["vision_cfg"] = {**tower, "timm_model_pretrained": False}
        with torch.device("cpu"):  # such towers compute tables that no file holds
            return kind(**sizes)
    network = kind(**sizes)
    # No file holds the causal mask, and PyTorch's meta device does not compute it.
    length = network.context_length
    network.attn_mask = torch.full((length, length), -math.inf, device="cpu").triu(1)
    return network


def text_identity(
    name: str, version: int, context: int, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """What a text bank's rows depend on beside its prompts, for its key.

    Args:
        name: of the extractor.
        version: of the extractor.
        context: tokens of a prompt.
        parameters: of the extractor, as far as they matter to the text.
    """
    return {
        "extractor": name,
        "version": version,
        "tokenizer": "OpenAI CLIP, lower-cased byte pairs",
        "context_length": context,
        **parameters,
    }


def tokens_of(prompts: tuple[str, ...], context: int) -> Tensor:
    """Token numbers [n, context], padding included; of a longer prompt the last one is the end."""
    return _tokenizer()(list(prompts), context)


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    import open_clip

    return open_clip.SimpleTokenizer()


def text_bank(
    tower: Callable[[Tensor], Tensor],
    logit_scale: Tensor,
    prompts: tuple[str, ...],
    *,
    context: int,
    precision: AbstractContextManager[Any],
    batch: int | None = None,
) -> TextBank:
    """The prompts through a text tower.

    Args:
        tower: ready to compute: token numbers [n, context] to rows [n, d] of unit length.
        logit_scale: of the network; its exponential is the bank's scale.
        prompts: n of them.
        context: tokens of a prompt.
        precision: of the extractor.
        batch: prompts at once; None means all.
    """
    import torch

    from vqbank.store.text import TextBank

    tokens = tokens_of(prompts, context).to(logit_scale.device)
    with torch.inference_mode(), precision:
        rows = [tower(part) for part in tokens.split(batch or len(prompts))]
        scale = logit_scale.exp().item()
    return TextBank(prompts, torch.cat(rows).float().cpu().numpy(), scale)


def to_unit_length(tower: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same tower with its rows scaled to unit length, in float32 whatever it computes in."""
    from torch.nn import functional

    return lambda tokens: functional.normalize(tower(tokens).float(), dim=-1)
