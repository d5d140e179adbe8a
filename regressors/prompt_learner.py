"""Prompts of which some tokens are learnt, through a frozen text tower (CoOp, arXiv 2109.01134)."""

import torch
from torch import Tensor, nn

from vqbank.regressors.layers import Frozen
from vqbank.regressors.tail import TextTail


class PromptLearner(nn.Module):
    """Embeddings of texts, in which what is learnt stands in the place of some tokens.

    What the context starts from is drawn by whoever makes it: CoOp draws N(0, 0.02).

    Args of the constructor:
        text: the text tower, which is frozen.
        tokens: [k, length] token numbers of k prompts.
        places: [k, m] of each prompt, which tokens give way to what is learnt.
        shared: whether all prompts learn the same ones.
    """

    prompts: Tensor
    places: Tensor
    ends: Tensor

    def __init__(
        self, text: TextTail, tokens: Tensor, places: Tensor, *, shared: bool = False
    ) -> None:
        super().__init__()
        self.text = Frozen(text)
        ends = tokens.argmax(dim=1)
        # The tower is causal: nothing behind the last end matters.
        embedded = text.embed(tokens[:, : int(ends.max()) + 1]).detach()
        self.register_buffer("prompts", embedded, persistent=False)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("ends", ends, persistent=False)
        size = places.shape[1:] if shared else places.shape
        self.context = nn.Parameter(torch.empty(*size, embedded.shape[-1]))

    def embeddings(self) -> Tensor:
        """[k, length, d], places not told yet."""
        count, width = len(self.prompts), self.prompts.shape[-1]
        learnt = self.context.expand(count, -1, -1) if self.context.ndim == 2 else self.context
        return self.prompts.scatter(1, self.places[..., None].expand(-1, -1, width), learnt)

    def forward(self) -> Tensor:
        """[k, e], not scaled to unit length."""
        features: Tensor = self.text(self.embeddings(), self.ends)
        return features
