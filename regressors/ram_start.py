"""Where RAM-VQA's technical branch starts: from CLIP's own tower ("ViT-B/32 as parts")."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vqbank.regressors.ram_network import FragmentEmbedding, TechnicalBranch
from vqbank.regressors.tail import ImageTail
from vqbank.regressors.temporal_interaction import CrossClip
from vqbank.store.errors import HeadError


def start_from_clip(branch: TechnicalBranch, early: Mapping[str, Tensor], tail: ImageTail) -> None:
    """Put CLIP's weights where the branch has the same layers; all else stays as drawn.

    Both embeddings start from its patch embedding, class token, places and first norm; attention
    over tokens and perceptron of message layer l from its block l, where it has so many; the last
    norm and projection from its own.

    Args:
        branch: of the width of CLIP's tower.
        early: the tower up to the cut, its weights by name as `early_tower` of companions gives
            them.
        tail: the tower behind it.

    Raises:
        HeadError: if the branch has layers of another size.
    """
    tensors = {**early, **tail.state_dict()}
    for embedding in branch.embeddings.values():
        assert isinstance(embedding, FragmentEmbedding)
        own = dict(embedding.named_parameters())
        _copy({name: value for name, value in own.items() if name in tensors}, tensors, "")
    for number, layer in enumerate(branch.tim.ccct):
        assert isinstance(layer, CrossClip)
        prefix = f"blocks.{number}."
        if f"{prefix}ln_1.weight" in tensors:
            _copy(dict(layer.block.named_parameters()), tensors, prefix)
    last: dict[str, nn.Parameter] = {
        "ln_post.weight": branch.ln_post.weight,
        "ln_post.bias": branch.ln_post.bias,
        "proj": branch.proj,
    }
    _copy(last, tensors, "")


def _copy(
    parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], prefix: str
) -> None:
    for name, parameter in parameters.items():
        given = tensors[prefix + name]
        if given.shape != parameter.shape:
            raise HeadError(
                f"ram cannot start from this CLIP: {prefix}{name} has shape {tuple(given.shape)}, "
                f"not {tuple(parameter.shape)}; take fragments of its patches and its width, or "
                "from_clip = False"
            )
        with torch.no_grad():
            parameter.copy_(given)
