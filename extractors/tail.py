"""What an extractor gives for its tail: weights under the names of `regressors/tail.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from vqbank.store.tail import Tower


_EARLY = ("class_embedding", "positional_embedding")


def tower(state: Mapping[str, Tensor], **configuration: Any) -> Tower:
    """A tower of a state dict whose keys are already those of the tail's modules."""
    from vqbank.store.tail import Tower

    return Tower(configuration, {key: _array(value) for key, value in state.items()})


def open_clip_image(state: Mapping[str, Tensor], *, cut: int, **configuration: Any) -> Tower:
    """The tower of open_clip's own image transformer behind a cut.

    Args:
        state: of its `visual`.
        cut: the block, counted from 0, after which the state is banked.
        **configuration: what else `ImageTail` takes.
    """
    ours = {key: state[key] for key in ("ln_post.weight", "ln_post.bias", "proj")}
    for key, value in state.items():
        match = re.fullmatch(r"transformer\.resblocks\.((\d+)\..*)", key)
        if match is not None and int(match[2]) > cut:
            ours[f"blocks.{match[1]}"] = value
    return tower(ours, cut=cut, **configuration)


def open_clip_early(state: Mapping[str, Tensor], *, cut: int) -> Tower:
    """The tower of open_clip's own image transformer up to a cut, from the pixels on.

    Nothing goes on with it: heads start layers of their own from its weights.

    Args:
        state: of its `visual`.
        cut: the block, counted from 0, after which the state is banked.
    """
    ours = {}
    for key, value in state.items():
        match = re.fullmatch(r"transformer\.resblocks\.((\d+)\..*)", key)
        if match is not None and int(match[2]) <= cut:
            ours[f"blocks.{match[1]}"] = value
        elif key.startswith(("conv1.", "ln_pre.")) or key in _EARLY:
            ours[key] = value
    return tower(ours, cut=cut)


def open_clip_text(state: Mapping[str, Tensor], **configuration: Any) -> Tower:
    """The tower of open_clip's causal text transformer.

    Args:
        state: of a network that has it, alone or among other towers.
        **configuration: what `TextTail` takes.
    """
    kept = ("token_embedding.", "positional_embedding", "ln_final.", "text_projection", "blocks.")
    ours = {key.replace("transformer.resblocks.", "blocks."): value for key, value in state.items()}
    return tower({k: v for k, v in ours.items() if k.startswith(kept)}, **configuration)


def _array(value: Tensor) -> NDArray[Any]:
    return value.detach().float().cpu().contiguous().numpy()
