"""Q-CLIP's network: adapters that both frozen towers share, in their last blocks; five prompts.

"Q-CLIP" (ICML 2026), in the form of its official code, xiao-mi-d/Q-CLIP, whose names of weights are
kept.  The paper differs: there an adapter stands beside its block, not behind it.

It goes on from `pe.tokens`, the states after block 18 of PE-Core's image tower, with the tail that
was banked beside them.

Shape letters: n videos, f frames, l tokens of a picture or a prompt, d width of both towers, e
width of a feature, p prompts.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vqbank.regressors.tail import ImageTail, TextTail
from vqbank.store.errors import HeadError

INNER = 128  # width inside the adapters
CONTEXT = 3  # tokens of a prompt, behind its start, in whose place something learnt stands


class Scma(nn.Module):
    """Shared cross-modal adapters, and all else that Q-CLIP learns.

    Args of the constructor:
        width: d.
        embedding: e.
        blocks: numbers of the blocks that an adapter stands behind, the same in both towers.
        prompts: p.
        inner: width inside the adapters.
    """

    def __init__(
        self, *, width: int, embedding: int, blocks: range, prompts: int, inner: int = INNER
    ) -> None:
        super().__init__()
        self.shared_core = nn.Sequential(
            nn.Linear(inner, inner), nn.GELU(), nn.Linear(inner, inner)
        )
        self.encoder_adapters = nn.ModuleDict(
            {
                str(number): nn.ModuleDict(
                    {
                        "down_proj": nn.Linear(width, inner),
                        "up_proj": nn.Linear(inner, width),
                        "ln": nn.LayerNorm(width),
                    }
                )
                for number in blocks
            }
        )
        self.proj_adapter = nn.Sequential(
            nn.Linear(width, inner),
            nn.Linear(inner, inner),
            nn.GELU(),
            nn.Linear(inner, embedding),
        )
        self.image_adapter_weight = nn.Parameter(torch.tensor(0.1))
        self.text_adapter_weight = nn.Parameter(torch.tensor(0.1))
        self.image_proj_adapter_weight = nn.Parameter(torch.tensor(0.1))
        self.text_proj_adapter_weight = nn.Parameter(torch.tensor(0.1))
        self.context_tokens = nn.Parameter(torch.zeros(1, CONTEXT, width))
        self.score_proj = nn.Parameter(torch.randn(prompts, 1) * prompts**-0.5)

    def adapt(self, number: int, state: Tensor, scale: Tensor) -> Tensor:
        """The state [..., d] that block `number` gave, with what its adapter adds."""
        adapter: Any = self.encoder_adapters[str(number)]
        inner = self.shared_core(adapter["down_proj"](state))
        return state + scale * adapter["ln"](adapter["up_proj"](inner))

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Take weights from a checkpoint of the official code.

        Its frozen towers, its prompts' embeddings and the adapters of blocks that have none here,
        which the official code makes for all blocks and never runs, are left alone.

        Args:
            state: its `state_dict`, with or without the prefix "module.".

        Raises:
            HeadError: if a weight is missing or of another shape.
        """
        official = {key.removeprefix("module."): value for key, value in state.items()}
        wanted = self.state_dict()
        for key, value in wanted.items():
            if key not in official:
                raise HeadError(f"these weights are not Q-CLIP's: they have no {key}")
            if official[key].shape != value.shape:
                raise HeadError(
                    f"{key} has shape {tuple(official[key].shape)}; here it is {tuple(value.shape)}"
                )
        self.load_state_dict({key: official[key] for key in wanted})


class QClip(nn.Module):
    """States of frames, behind the block of the cut, to scores.

    Args of the constructor:
        image: the frozen image tower from the cut on; behind the block of the cut, too, an adapter
            stands.
        text: the frozen text tower, of as many blocks and the same width.
        tokens: [p, length] token numbers of the prompts; of a prompt those behind its start are
            replaced by what is learnt.
        inner: width inside the adapters.

    Raises:
        HeadError: if the towers differ in width or in blocks.
    """

    prompts: Tensor
    ends: Tensor

    def __init__(
        self, image: ImageTail, text: TextTail, tokens: Tensor, *, inner: int = INNER
    ) -> None:
        super().__init__()
        self.image = image
        self.text = text
        width, embedding = image.proj.shape
        layers = image.numbers.stop
        found = *text.text_projection.shape, len(text.blocks)
        if found != (width, embedding, layers):
            raise HeadError(
                "adapters that both towers share need towers of one width, one embedding and as "
                f"many blocks; the image tower has {width}, {embedding} and {layers}, the text "
                "tower {}, {} and {}".format(*found)
            )
        ends = tokens.argmax(dim=1)
        # The tower is causal: nothing behind the last end matters.
        embedded = text.embed(tokens[:, : int(ends.max()) + 1]).detach()
        self.register_buffer("prompts", embedded, persistent=False)
        self.register_buffer("ends", ends, persistent=False)
        self.scma = Scma(
            width=width,
            embedding=embedding,
            blocks=range(image.cut, layers),
            prompts=len(tokens),
            inner=inner,
        )
        with torch.no_grad():  # the same words stand in every prompt
            self.scma.context_tokens.copy_(embedded[:1, 1 : 1 + CONTEXT])

    def states(self, state: Tensor) -> Iterator[Tensor]:
        """[b, l, d] after each adapter, that of the cut first, of the state [b, l, d] there."""
        scale = self.scma.image_adapter_weight
        state = self.scma.adapt(self.image.cut, state, scale)
        yield state
        for number in self.image.numbers:
            state = self.scma.adapt(number, self.image.block(number, state), scale)
            yield state

    def frame(self, state: Tensor) -> Tensor:
        """[b, e], not scaled to unit length, of the state [b, l, d] after the last adapter."""
        pooled = self.image.pool(state)
        added = self.scma.image_proj_adapter_weight * self.scma.proj_adapter(pooled)
        return self.image.project(pooled) + added

    def video(self, frames: Tensor) -> Tensor:
        """[n, e] of length 1: the mean over the frames [n, f, e]."""
        return normalize(frames.mean(dim=1), dim=1)

    def levels(self) -> Tensor:
        """[p, e] of length 1: the prompts with what was learnt in them."""
        context = self.scma.context_tokens.expand(len(self.prompts), -1, -1)
        learnt = [self.prompts[:, :1], context, self.prompts[:, 1 + CONTEXT :]]
        state = self.text.place(torch.cat(learnt, dim=1))
        for number in range(len(self.text.blocks)):
            state = self.text.block(number, state)
            if number >= self.image.cut:
                state = self.scma.adapt(number, state, self.scma.text_adapter_weight)
        pooled = self.text.pool(state, self.ends)
        added = self.scma.text_proj_adapter_weight * self.scma.proj_adapter(pooled)
        return normalize(self.text.project(pooled) + added, dim=1)

    def forward(self, state: Tensor) -> Tensor:
        """Scores [n] of the states [n, f, l, d] after the block of the cut."""
        *_, last = self.states(state.flatten(0, 1))
        frames = self.frame(last).unflatten(0, state.shape[:2])
        similarity = self.video(frames) @ self.levels().T  # [n, p]
        return (similarity @ self.scma.score_proj).squeeze(1)
