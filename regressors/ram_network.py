"""RAM-VQA's network: an adapted CLIP for what a video shows, fragments of it for how it looks.

"RAM-VQA" (IEEE TIP 2026), sections III-B; it has no public code.  What the paper leaves open is
said where it is decided.  The aesthetic branch goes on from `clip.tokens`, the technical one from
fragments of a video and of the residual to its restoration, `residual.fragments` and
`residual.residuals`.

Shape letters: b videos, f frames, k clips, t frames of a clip, n tokens of a frame with the class
token first, m fragments of a frame, d width, e width of a feature, l levels of quality.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from vqbank.regressors.layers import Frozen
from vqbank.regressors.tail import ImageTail
from vqbank.regressors.temporal_interaction import FrameIntegration, TemporalInteraction

Usage = Literal["cross", "residual-concat", "direct-concat", "direct", "none"]
"""What the technical branch does with what restoration says (figure 7): residual fragments ask
those of the video (*residual cross*); stand beside them; restored ones stand beside them; are seen
alone; or nothing, and the video's tokens go on ("no CA" of table III)."""
STREAMS: Mapping[Usage, tuple[str, ...]] = {
    "cross": ("fragments", "residuals"),
    "residual-concat": ("fragments", "residuals"),
    "direct-concat": ("fragments", "restored"),
    "direct": ("restored",),
    "none": ("fragments",),
}
"""Which streams of fragments are embedded."""
GRID = 7
"""Fragments of a frame, along either side."""
# CLIP's statistics of RGB from 0 to 1, those of `vqbank.extractors.views`, which heads never see.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class Modulation(nn.Module):
    """CeM, equations 2 and 3: an adapted class token, and patches weighted by their cosine with it.

    The adapter is that of KSVQE's code, which the paper's group wrote too: a fourth of the width
    between two linear layers, ReLU behind both.  KSVQE mixes it half and half with the class token,
    and never multiplies patches.

    Args of the constructor:
        width: d.
        blend: part of the adapted token in what goes on; the rest is the class token itself.
        importance: whether patches are multiplied by their cosine with what goes on.
    """

    def __init__(self, width: int, *, blend: float = 1.0, importance: bool = True) -> None:
        super().__init__()
        hidden = width // 4
        self.phi = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.ReLU()
        )
        self.blend = blend
        self.importance = importance

    def forward(self, state: Tensor) -> Tensor:
        """[..., n, d] of the state [..., n, d] after a block."""
        token, patches = state[..., :1, :], state[..., 1:, :]
        adapted = self.blend * self.phi(token) + (1 - self.blend) * token
        if self.importance:
            patches = patches * cosine_similarity(adapted, patches, dim=-1)[..., None]
        return torch.cat([adapted, patches], dim=-2)


class AestheticBranch(nn.Module):
    """Semantic enhancement learning: frozen blocks of CLIP with adapters between them.

    Args of the constructor:
        tail: the frozen image tower behind the cut; behind the block of the cut, too, an adapter
            stands.
        modulations: by number of a block, the adapter behind it; none where CLIP goes unadapted.
    """

    def __init__(self, tail: ImageTail, modulations: Mapping[int, Modulation]) -> None:
        super().__init__()
        self.tail = Frozen(tail)
        self.numbers = tail.numbers
        self.cut = tail.cut
        self.modulations = nn.ModuleDict({str(n): one for n, one in modulations.items()})

    def forward(self, state: Tensor) -> Tensor:
        """[..., e], not scaled to unit length, of the state [..., n, d] after the cut."""
        tail = self.tail.network
        assert isinstance(tail, ImageTail)
        frames = self._modulated(self.cut, state.flatten(0, -3))
        for number in self.numbers:
            frames = self._modulated(number, tail.block(number, frames))
        return tail.project(tail.pool(frames)).unflatten(0, state.shape[:-2])

    def _modulated(self, number: int, state: Tensor) -> Tensor:
        name = str(number)
        return self.modulations[name](state) if name in self.modulations else state


class FragmentEmbedding(nn.Module):
    """Frames of fragments as tokens, in front of a transformer, as CLIP's tower begins.

    A fragment is as large as a patch of ViT-B/32, so that a frame of 7 x 7 of them has as many
    tokens as a picture.

    Args of the constructor:
        shape: of a clip: [t, 3, h, w] pixels; [t, m, d] tokens of a patch embedding that is frozen;
            or [t, e] features of frames, of which each is one token.
        width: d.
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.conv1: nn.Conv2d | None = None
        self.feature: nn.Linear | None = None
        patches = GRID * GRID
        if len(shape) == 4:
            side = shape[-1] // GRID
            self.conv1 = nn.Conv2d(3, width, side, side, bias=False)
        elif len(shape) == 3:
            patches = shape[1]
        else:
            patches = 0
            self.feature = nn.Linear(shape[-1], width)
        self.patches = patches
        if patches:
            self.class_embedding = nn.Parameter(torch.empty(width))
            self.positional_embedding = nn.Parameter(torch.empty(patches + 1, width))
        self.ln_pre = nn.LayerNorm(width)

    def forward(self, clips: Tensor) -> Tensor:
        """[b, t, n, d] of clips [b, *shape]: pixels as the network sees them."""
        if self.feature is not None:
            return self.ln_pre(self.feature(clips))[:, :, None]
        tokens = clips
        if self.conv1 is not None:
            maps = self.conv1(clips.flatten(0, 1))
            tokens = maps.flatten(2).transpose(1, 2).unflatten(0, clips.shape[:2])
        first = self.class_embedding.expand(*tokens.shape[:2], 1, -1)
        placed = torch.cat([first, tokens], dim=2) + self.positional_embedding
        return self.ln_pre(placed)


@dataclass(frozen=True)
class TechnicalSizes:
    """What the technical branch is made of."""

    width: int
    """d."""
    heads: int
    """Of its attentions; 12 at a width of 768."""
    embedding: int
    """e."""
    layers: int
    """L_c, of TMAT and CCCT each.  The paper does not say; 12 are assumed, with which its 862 G
    multiply-adds agree."""
    part: int
    """Frames of a part of a clip, to CCCT."""
    usage: Usage
    mutual: bool
    messages: bool
    skip: bool
    """Of the integration of frames."""


class TechnicalBranch(nn.Module):
    """Temporal asymptotic interaction: clips of fragments to one feature each, equations 4 to 15.

    Args of the constructor:
        shape: of a clip of fragments; see `FragmentEmbedding`.
        sizes: what it is made of.
    """

    def __init__(self, shape: tuple[int, ...], sizes: TechnicalSizes) -> None:
        super().__init__()
        self.usage = sizes.usage
        self.embeddings = nn.ModuleDict(
            {stream: FragmentEmbedding(shape, sizes.width) for stream in STREAMS[sizes.usage]}
        )
        self.mhca = (
            nn.MultiheadAttention(sizes.width, sizes.heads, batch_first=True)
            if sizes.usage == "cross"
            else None
        )
        self.tim = TemporalInteraction(
            sizes.width,
            sizes.heads,
            layers=sizes.layers,
            frames=sizes.part,
            mutual=sizes.mutual,
            messages=sizes.messages,
        )
        self.ln_post = nn.LayerNorm(sizes.width)
        self.proj = nn.Parameter(torch.empty(sizes.width, sizes.embedding))
        self.mit = FrameIntegration(
            sizes.embedding, max(1, sizes.embedding // 64), frames=shape[0], skip=sizes.skip
        )

    def forward(self, streams: Mapping[str, Tensor]) -> Tensor:
        """[b, e] of clips [b, *shape] of each stream."""
        return self.integrated(self.tokens(streams)[:, :, 0])

    def tokens(self, streams: Mapping[str, Tensor]) -> Tensor:
        """[b, t, n, d]: after the last layer of the interaction."""
        embedded = [part(streams[stream]) for stream, part in self.embeddings.items()]
        if self.mhca is not None:
            video, residual = (one.flatten(0, 1) for one in embedded)
            crossed, _ = self.mhca(residual, video, video, need_weights=False)
            state = crossed.unflatten(0, embedded[0].shape[:2])
        else:  # the class token once, where it is not all
            others = (one[:, :, 1:] if one.shape[2] > 1 else one for one in embedded[1:])
            state = torch.cat([embedded[0], *others], dim=2)
        return self.tim(state)

    def integrated(self, tokens: Tensor) -> Tensor:
        """[b, e] of one token [b, t, d] of every frame."""
        return self.mit(self.ln_post(tokens) @ self.proj)


class Fusion(nn.Module):
    """Equation 16: a residual perceptron on both branches, for every frame of the aesthetic one."""

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * embedding, embedding), nn.GELU(), nn.Linear(embedding, embedding)
        )

    def forward(self, aesthetic: Tensor, technical: Tensor) -> Tensor:
        """[..., e] of both, which broadcast."""
        aesthetic, technical = torch.broadcast_tensors(aesthetic, technical)
        return self.mlp(torch.cat([aesthetic, technical], dim=-1)) + aesthetic


class LevelScore(nn.Module):
    """Equation 17: how much a feature is like the text of one level rather than the others.

    Args of the constructor:
        levels: [l, e] of unit length.
        anchor: the level whose share is the score.
        scale: what cosines are multiplied by; the paper has none, which is 1.
    """

    levels: Tensor

    def __init__(self, levels: Tensor, *, anchor: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("levels", levels)
        self.anchor = anchor
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """[...] of features [..., e]."""
        similarity = normalize(features, dim=-1) @ self.levels.T
        return (self.scale * similarity).softmax(dim=-1)[..., self.anchor]


class LineScore(nn.Module):
    """Without prompts (first row of table III): a linear layer on the mean over frames.

    It has no bias, of which a correlation as loss sees nothing.
    """

    def __init__(self, embedding: int) -> None:
        super().__init__()
        self.line = nn.Linear(embedding, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """[...] of features [..., e]."""
        return self.line(features)[..., 0]


class RamNetwork(nn.Module):
    """Both branches, their fusion, and the score of a video: the mean over its clips.

    Args of the constructor:
        aesthetic: the adapted tower; None where rows are features of frames already.
        technical: the branch of fragments, and the fusion with it; None without.
        fusion: where there is a technical branch.
        score: of a feature.
    """

    def __init__(
        self,
        aesthetic: AestheticBranch | None,
        technical: TechnicalBranch | None,
        fusion: Fusion | None,
        score: LevelScore | LineScore,
    ) -> None:
        super().__init__()
        self.aesthetic = aesthetic
        self.technical = technical
        self.fusion = fusion
        self.score = score

    def forward(self, frames: Tensor, real: Tensor, clips: Mapping[str, Tensor]) -> Tensor:
        """Scores [b].

        Args:
            frames: [b, f, n, d] states of frames after the cut, or [b, f, e] features.
            real: [b, f] bool, which of these are frames of the video.
            clips: by role, `fragments` and `residuals`, [b, k, *shape] as banked.
        """
        features = self.features(frames)
        if self.technical is None or self.fusion is None:
            return self._pooled(features[:, None], real)
        technical = self.technical(self._streams(clips)).unflatten(0, (len(features), -1))
        return self._pooled(self.fusion(features[:, None], technical[:, :, None]), real)

    def features(self, frames: Tensor) -> Tensor:
        """[b, f, e] of frames."""
        frames = frames.float()
        return frames if self.aesthetic is None else self.aesthetic(frames)

    def local(self, frames: Tensor, real: Tensor, clips: Mapping[str, Tensor]) -> Tensor:
        """[b, k, m]: the score of every fragment, its token in place of the class token.

        Arguments as for `forward`.
        """
        assert self.technical is not None
        assert self.fusion is not None
        features = self.features(frames)
        tokens = self.technical.tokens(self._streams(clips))[:, :, 1 : 1 + GRID * GRID]
        each = self.technical.integrated(tokens.transpose(1, 2).flatten(0, 1))
        each = each.unflatten(0, (len(features), -1))  # [b, k m, e]
        scores = self._by_place(self.fusion(features[:, None], each[:, :, None]), real)
        return scores.unflatten(1, (-1, tokens.shape[2]))

    def _pooled(self, features: Tensor, real: Tensor) -> Tensor:
        """[b] of features [b, k, f, e]: the mean over frames, then over clips."""
        return self._by_place(features, real).mean(dim=1)

    def _by_place(self, features: Tensor, real: Tensor) -> Tensor:
        """[b, k] of features [b, k, f, e]."""
        share = (real / real.sum(dim=1, keepdim=True))[:, None]
        if isinstance(self.score, LineScore):
            return self.score((share[..., None] * features).sum(dim=2))
        return (share * self.score(features)).sum(dim=2)

    def _streams(self, clips: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By stream, clips [b k, *shape] as the embedding sees them."""
        assert self.technical is not None
        flat = {role: values.flatten(0, 1).float() for role, values in clips.items()}
        found = {}
        for stream in self.technical.embeddings:
            if stream == "restored":
                values = (flat["fragments"] + flat["residuals"]).clamp(0, 255)
            else:
                values = flat[stream]
            pixels = values.ndim == 5
            if pixels:
                values = values / 255
            if pixels and stream != "residuals":
                mean, deviation = values.new_tensor(MEAN), values.new_tensor(DEVIATION)
                values = (values - mean[:, None, None]) / deviation[:, None, None]
            found[stream] = values
        return found
