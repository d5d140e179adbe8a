"""Q-CLIP's network: adapters that two frozen towers share, prompts that are learnt, one score.

"Q-CLIP" (ICML 2026), equations 1 to 12, and its official code, xiao-mi-d/Q-CLIP, whose names of
weights are kept.  The two differ: in the paper an adapter stands beside its block and sees what the
block sees, in the code it stands behind it; `Wiring` is either.

Shape letters: n videos, f frames, l tokens of a picture or a prompt, d width of both towers, e
width of a feature, p prompts, r width inside adapters.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vqbank.regressors.layers import linear
from vqbank.regressors.tail import ImageTail, TextTail
from vqbank.store.errors import HeadError

CONTEXT = 3
"""Tokens of a prompt, behind its start, in whose place something learnt stands."""
Wiring = Literal["parallel", "sequential"]
"""Whether an adapter reads what its block reads, as in the paper, or what its block gives."""
Sharing = Literal["layers", "towers", "none"]
"""Of adapters: between both towers, with one middle part for all blocks; between both towers alone;
or not at all.  The last three rows of the paper's Table 3, from below."""
Towers = Literal["both", "image", "text"]
"""Which towers have adapters."""


class Scma(nn.Module):
    """Shared cross-modal adapters, and all else that Q-CLIP learns.

    Args of the constructor:
        width: d.
        embedding: e.
        blocks: numbers of the blocks that have an adapter, the same in both towers; may be none.
        prompts: p.
        inner: r.
        context: [1, CONTEXT, d], where learnt tokens start; None where no token is learnt.
        wiring: of adapters; the paper's have a scale for each block, the code's one for a tower.
        sharing: of adapters.
        towers: that have adapters.
        generator: draws the start.
    """

    def __init__(
        self,
        *,
        width: int,
        embedding: int,
        blocks: range,
        prompts: int,
        inner: int,
        context: Tensor | None,
        wiring: Wiring,
        sharing: Sharing,
        towers: Towers,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.wiring = wiring
        self.sharing = sharing
        self.towers = ("image", "text") if towers == "both" else (towers,)
        self.first = blocks.start
        owners = self.towers if sharing == "none" else ("",)

        def middle() -> nn.Sequential:
            layers = [linear(inner, inner, generator=generator) for _ in range(2)]
            return nn.Sequential(layers[0], nn.GELU(), layers[1])

        def adapter() -> nn.ModuleDict:
            return nn.ModuleDict(
                {
                    "down_proj": linear(width, inner, generator=generator),
                    "up_proj": linear(inner, width, generator=generator),
                    "ln": nn.LayerNorm(width),
                }
            )

        names = [f"{owner}{number}" for owner in owners for number in blocks]
        self.encoder_adapters = nn.ModuleDict({name: adapter() for name in names})
        if blocks and sharing == "layers":
            self.shared_core = middle()
        else:
            self.cores = nn.ModuleDict({name: middle() for name in names})
        if sharing == "none":
            self.proj_adapters = nn.ModuleDict(
                {owner: _projection(width, embedding, inner, wiring, generator) for owner in owners}
            )
        else:
            self.proj_adapter = _projection(width, embedding, inner, wiring, generator)
        for tower in self.towers:
            if blocks:
                scale = (
                    torch.tensor(0.1) if wiring == "sequential" else torch.full((len(blocks),), 0.1)
                )
                self.register_parameter(f"{tower}_adapter_weight", nn.Parameter(scale))
            scale = nn.Parameter(torch.tensor(0.1))
            self.register_parameter(f"{tower}_proj_adapter_weight", scale)
        self.context_tokens = None if context is None else nn.Parameter(context.clone())
        drawn = torch.empty(prompts, 1).normal_(0, prompts**-0.5, generator=generator)
        self.score_proj = nn.Parameter(drawn)

    def adapt(self, tower: str, number: int, entering: Tensor, leaving: Tensor) -> Tensor:
        """The state [..., d] behind a block, with what its adapter adds.

        Args:
            tower: "image" or "text".
            number: of the block.
            entering: [..., d], what the block got.
            leaving: [..., d], what the block gave.
        """
        name = f"{tower if self.sharing == 'none' else ''}{number}"
        if tower not in self.towers or name not in self.encoder_adapters:
            return leaving
        adapter: Any = self.encoder_adapters[name]
        core = self.shared_core if self.sharing == "layers" else self.cores[name]
        seen = entering if self.wiring == "parallel" else leaving
        scale = getattr(self, f"{tower}_adapter_weight")
        if scale.ndim:
            scale = scale[number - self.first]
        return leaving + scale * adapter["ln"](adapter["up_proj"](core(adapter["down_proj"](seen))))

    def added(self, tower: str, pooled: Tensor) -> Tensor:
        """[..., e]: what P-SCMA adds to the feature of what was `pooled` [..., d], or 0."""
        if tower not in self.towers:
            return pooled.new_zeros(())
        adapter = self.proj_adapters[tower] if self.sharing == "none" else self.proj_adapter
        return getattr(self, f"{tower}_proj_adapter_weight") * adapter(pooled)

    def load_official(self, state: Mapping[str, Tensor]) -> None:
        """Take weights from a checkpoint of the official code; see `of_official`.

        Raises:
            HeadError: if a weight is missing or of another shape.
        """
        official = of_official(state)
        for key, value in self.state_dict().items():
            if key not in official:
                raise HeadError(f"these weights are not Q-CLIP's: they have no {key}")
            if official[key].shape != value.shape:
                raise HeadError(
                    f"{key} has shape {tuple(official[key].shape)}; here it is {tuple(value.shape)}"
                )
        self.load_state_dict({key: official[key] for key in self.state_dict()})


def of_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the official code without "module." before its names."""
    return {key.removeprefix("module."): value for key, value in state.items()}


def _projection(
    width: int, embedding: int, inner: int, wiring: Wiring, generator: torch.Generator
) -> nn.Sequential:
    """P-SCMA: of the paper one layer in the middle and a norm behind, of the code neither."""
    down, middle, up = (
        linear(wide, narrow, generator=generator)
        for wide, narrow in ((width, inner), (inner, inner), (inner, embedding))
    )
    if wiring == "sequential":
        return nn.Sequential(down, middle, nn.GELU(), up)
    return nn.Sequential(down, middle, up, nn.LayerNorm(embedding))


class QClipNetwork(nn.Module):
    """What is banked of frames to scores.

    Args of the constructor:
        image: the frozen image tower from the cut on, for states [n, f, l, d] at the cut; or its
            projection [d, e], for frames as they are after pooling, [n, f, d].
        text: the frozen text tower, of as many blocks and the same width; or what it made of fixed
            prompts.
        tokens: [p, length] token numbers of the prompts, for a tower.
        adapted: how many of the last blocks have an adapter.
        learns_context: whether what stands behind the start of every prompt is learnt.
        inner, wiring, sharing, towers, generator: of `Scma`.

    Raises:
        HeadError: if the towers differ in width or in blocks, or the cut lies behind an adapter.
    """

    prompts: Tensor
    ends: Tensor
    projection: Tensor
    text_projection: Tensor
    pooled_text: Tensor

    def __init__(
        self,
        image: ImageTail | Tensor,
        text: "TextTail | FixedPrompts",
        tokens: Tensor | None = None,
        *,
        adapted: int,
        learns_context: bool = True,
        inner: int,
        wiring: Wiring,
        sharing: Sharing = "layers",
        towers: Towers = "both",
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        projection = image.proj.detach() if isinstance(image, ImageTail) else image
        width, embedding = projection.shape
        first, layers = 0, 0
        if isinstance(image, ImageTail):
            layers = image.numbers.stop
            first = layers - adapted
            _check_cut(image.cut, first, adapted, layers, wiring)
        elif adapted:
            raise HeadError(
                f"{adapted} blocks have adapters, which need the states before them: take "
                "pe.tokens in place of pe.pooled, or adapted_blocks 0"
            )
        self.image = image if isinstance(image, ImageTail) else None
        self.register_buffer("projection", projection)
        context = None
        if isinstance(text, TextTail):
            assert tokens is not None
            _check_towers(width, embedding, layers, text, adapted)
            ends = tokens.argmax(dim=1)
            # The tower is causal: nothing behind the last end matters.
            embedded = text.embed(tokens[:, : int(ends.max()) + 1]).detach()
            self.register_buffer("prompts", embedded, persistent=False)
            self.register_buffer("ends", ends, persistent=False)
            self.register_buffer("text_projection", text.text_projection.detach())
            if learns_context:  # the same words stand in every prompt
                context = embedded[:1, 1 : 1 + CONTEXT]
        else:
            # Made of frozen weights, with other last bits on another processor: no such weight.
            self.register_buffer("pooled_text", text.pooled, persistent=False)
            self.register_buffer("text_projection", text.projection)
        self.text = text if isinstance(text, TextTail) else None
        self.scma = Scma(
            width=width,
            embedding=embedding,
            blocks=range(first, layers) if adapted else range(0),
            prompts=len(tokens) if tokens is not None else len(self.pooled_text),
            inner=inner,
            context=context,
            wiring=wiring,
            sharing=sharing,
            towers=towers,
            generator=generator,
        )

    def states(self, state: Tensor) -> Iterator[Tensor]:
        """[b, l, d] behind each block, with its adapter, of the state [b, l, d] at the cut.

        The block of the cut comes first.
        """
        assert self.image is not None
        scma = self.scma
        if scma.wiring == "sequential":  # the adapter of the cut's block, if it has one
            state = scma.adapt("image", self.image.cut, state, state)
        yield state
        for number in self.image.numbers:
            state = scma.adapt("image", number, state, self.image.block(number, state))
            yield state

    def frame(self, state: Tensor) -> Tensor:
        """[b, e], not scaled to unit length, of the state [b, l, d] after the last block."""
        assert self.image is not None
        pooled = self.image.pool(state)
        return pooled @ self.projection + self.scma.added("image", pooled)

    def video(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """[n, e] of length 1: the mean over the frames [n, f, e].

        Args:
            frames: of n videos.
            mask: [n, f], true for those that count; None for all.
        """
        return normalize(_mean(frames, mask), dim=1)

    def pooled_video(self, pooled: Tensor, mask: Tensor | None = None) -> Tensor:
        """[n, e] of length 1 of frames after pooling, [n, f, d]; as `video` of their features.

        The mean goes through the frozen projection, in place of all of what it is the mean of.
        """
        added = self.scma.added("image", pooled)
        mean = _mean(pooled, mask) @ self.projection
        return normalize(mean + (_mean(added, mask) if added.ndim else added), dim=1)

    def levels(self) -> Tensor:
        """[p, e] of length 1: the prompts with what was learnt in them."""
        pooled = self.pooled_text if self.text is None else self._pooled_levels()
        feature = pooled @ self.text_projection + self.scma.added("text", pooled)
        return normalize(feature, dim=1)

    def _pooled_levels(self) -> Tensor:
        assert self.text is not None
        embeddings = self.prompts
        if self.scma.context_tokens is not None:
            context = self.scma.context_tokens.expand(len(embeddings), -1, -1)
            embeddings = torch.cat(
                [embeddings[:, :1], context, embeddings[:, 1 + CONTEXT :]], dim=1
            )
        state = self.text.place(embeddings)
        for number in range(len(self.text.blocks)):
            state = self.scma.adapt("text", number, state, self.text.block(number, state))
        return self.text.pool(state, self.ends)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scores [n].

        Args:
            frames: what is banked of them: [n, f, l, d] at the cut, or pooled, [n, f, d].
            mask: [n, f], true for those that count; None for all.
        """
        if self.image is None:
            videos = self.pooled_video(frames, mask)
        else:
            *_, last = self.states(frames.flatten(0, 1))
            videos = self.video(self.frame(last).unflatten(0, frames.shape[:2]), mask)
        similarity = videos @ self.levels().T  # [n, p]
        return (similarity @ self.scma.score_proj).squeeze(1)


def _mean(frames: Tensor, mask: Tensor | None) -> Tensor:
    """[n, d] of [n, f, d], over those frames that the mask [n, f] counts."""
    if mask is None:
        return frames.mean(dim=1)
    weights = mask / mask.sum(dim=1, keepdim=True)
    return (weights[..., None] * frames).sum(dim=1)


class FixedPrompts(NamedTuple):
    """Prompts that went through a frozen text tower without adapters."""

    pooled: Tensor
    """[p, d], before the projection."""
    projection: Tensor
    """[d, e]."""

    @classmethod
    @torch.no_grad()
    def of(cls, text: TextTail, tokens: Tensor) -> "FixedPrompts":
        """Of token numbers [p, length]."""
        ends = tokens.argmax(dim=1)
        state = text.place(text.embed(tokens[:, : int(ends.max()) + 1]))
        for number in range(len(text.blocks)):
            state = text.block(number, state)
        return cls(text.pool(state, ends), text.text_projection.detach().clone())


def _check_towers(width: int, embedding: int, layers: int, text: TextTail, adapted: int) -> None:
    found = *text.text_projection.shape, len(text.blocks)
    if found != (width, embedding, layers if adapted else found[2]):
        raise HeadError(
            "adapters that both towers share need towers of one width, one embedding and as "
            f"many blocks; the image tower has {width}, {embedding} and {layers}, the text "
            "tower {}, {} and {}".format(*found)
        )


def _check_cut(cut: int, first: int, adapted: int, layers: int, wiring: Wiring) -> None:
    if adapted > layers:
        raise HeadError(f"{adapted} blocks cannot have adapters: the towers have {layers}")
    latest = first if wiring == "sequential" else first - 1
    if adapted and cut > latest:
        raise HeadError(
            f"the first adapter stands {'behind' if wiring == 'sequential' else 'beside'} block "
            f"{first}, and needs the state after block {latest} or before; banked is that after "
            f"block {cut}: extract with cut {latest}, or lower adapted_blocks"
        )
