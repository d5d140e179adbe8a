"""RAM-VQA: the sizes of its parts, the ways they can be wired, and what its two stages learn."""

import numpy as np
import pytest
import torch
from torch import nn

from vqbank.regressors.drawing import drawn
from vqbank.regressors.ram_network import (
    GRID,
    AestheticBranch,
    Fusion,
    LevelScore,
    LineScore,
    Modulation,
    RamNetwork,
    TechnicalBranch,
    TechnicalSizes,
)
from vqbank.regressors.tail import ImageTail
from vqbank.regressors.temporal_interaction import (
    CrossClip,
    FrameIntegration,
    MutualAttention,
    TemporalInteraction,
)

PIXELS = (32, 3, 224, 224)
SMALL = (8, 3, 28, 28)
"""A clip of 8 frames of 7 x 7 fragments of 4 pixels."""
WIDTH, EMBEDDING = 32, 16


def count(module):
    return sum(value.numel() for value in module.parameters() if value.requires_grad)


def sizes(**given):
    usual = {
        "width": WIDTH, "heads": 2, "embedding": EMBEDDING, "layers": 2, "part": 4,
        "usage": "cross", "mutual": True, "messages": True, "skip": False,
    }  # fmt: skip
    return TechnicalSizes(**{**usual, **given})


def tail(*, cut=1, layers=3):
    torch.manual_seed(0)
    made = ImageTail(
        width=WIDTH, heads=2, hidden=64, activation="quick_gelu", cut=cut, layers=layers,
        embedding=EMBEDDING,
    )  # fmt: skip
    nn.init.normal_(made.proj, std=0.2)
    return made


def network(seed=0, *, shape=SMALL, modulated=True, technical=True, score=None, **given):
    generator = torch.Generator().manual_seed(seed)
    aesthetic = {n: drawn(lambda: Modulation(WIDTH), generator) for n in (1, 2) if modulated}
    levels = nn.functional.normalize(torch.randn(3, EMBEDDING, generator=generator), dim=1)
    return RamNetwork(
        AestheticBranch(tail(), aesthetic),
        drawn(lambda: TechnicalBranch(shape, sizes(**given)), generator) if technical else None,
        drawn(lambda: Fusion(EMBEDDING), generator) if technical else None,
        score or LevelScore(levels, anchor=0, scale=1.0),
    )


def some(seed=0, *, n=2, frames=3, clips=3, shape=SMALL):
    rng = np.random.default_rng(seed)
    state = torch.from_numpy(rng.normal(size=(n, frames, 5, WIDTH)).astype(np.float16))
    video = torch.from_numpy(rng.integers(0, 256, (n, clips, *shape), dtype=np.uint8))
    residual = torch.from_numpy(rng.integers(-255, 256, (n, clips, *shape)).astype(np.int16))
    both = {"fragments": video, "residuals": residual}
    return state, torch.ones(n, frames, dtype=torch.bool), both


# --- sizes


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Modulation(768), 295_872),
        (lambda: nn.MultiheadAttention(768, 12), 2_362_368),
        (lambda: MutualAttention(768, 12, shifted=False), 8_269_824),
        (lambda: CrossClip(768, 12, frames=8), 14_171_136),
        (lambda: FrameIntegration(512, 8, frames=32), 3_168_768),
        (lambda: Fusion(512), 787_456),
    ],
)
def test_parts_have_as_many_parameters_as_those_of_the_paper(make, expected):
    with torch.device("meta"):
        assert count(make()) == expected


@pytest.mark.parametrize(
    ("layers", "millions"), [(1, 34.0), (2, 56.4), (4, 101.3), (6, 146.2), (12, 280.8)]
)
def test_technical_branch_and_fusion_have_as_many_parameters_as_published(layers, millions):
    with torch.device("meta"):
        paper = sizes(width=768, heads=12, embedding=512, layers=layers, part=8)
        total = count(TechnicalBranch(PIXELS, paper)) + count(Fusion(512))
    assert round(total / 1e6, 1) == millions


# --- wirings


@pytest.mark.parametrize("usage", ["cross", "residual-concat", "direct-concat", "direct", "none"])
def test_every_usage_of_restoration_gives_a_share_and_learns(usage):
    made = network(usage=usage)
    state, real, clips = some()
    scores = made(state, real, clips)
    assert scores.shape == (2,)
    assert bool(((scores > 0) & (scores < 1)).all())
    scores.sum().backward()
    used = {"fragments": usage != "direct", "residuals": usage not in {"none"}}
    other = some(seed=1)[2]
    for role, expected in used.items():
        changed = made(state, real, {**clips, role: other[role]})
        assert bool((changed != scores).all()) == (expected or usage == "direct")
    missing = [
        name for name, one in made.named_parameters() if one.requires_grad and one.grad is None
    ]
    assert missing == []


@pytest.mark.parametrize(
    "given", [{"mutual": False}, {"messages": False}, {"skip": True}, {"part": 2}, {"layers": 1}]
)
def test_parts_can_be_left_out(given):
    state, real, clips = some()
    assert bool((network()(state, real, clips) != network(**given)(state, real, clips)).all())


def test_without_a_technical_branch_fragments_are_not_looked_at():
    made = network(technical=False)
    state, real, clips = some()
    assert torch.equal(made(state, real, clips), made(state, real, {}))


def test_without_prompts_a_line_scores_the_mean_over_frames():
    line = LineScore(EMBEDDING)
    made = network(technical=False, score=line)
    state, real, _ = some()
    expected = made.features(state).mean(dim=1) @ line.line.weight[0]
    torch.testing.assert_close(made(state, real, {}), expected)


def test_the_score_of_a_video_is_the_mean_over_clips_and_real_frames():
    made = network()
    state, real, clips = some()
    expected = made(state, real, clips)
    alone = [made(state, real, {r: c[:, k : k + 1] for r, c in clips.items()}) for k in range(3)]
    torch.testing.assert_close(torch.stack(alone).mean(dim=0), expected)
    longer = torch.cat([state, 100 * torch.ones_like(state[:, :1])], dim=1)
    padded = torch.cat([real, torch.zeros(2, 1, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(made(longer, padded, clips), expected)


def test_the_anchor_is_the_level_whose_share_is_the_score():
    state, real, clips = some()
    shares = []
    for anchor in range(3):
        made = network()
        made.score.anchor = anchor
        shares.append(made(state, real, clips))
    torch.testing.assert_close(sum(shares), torch.ones(2))


@pytest.mark.parametrize(
    ("shape", "usage"),
    [((8, 49, WIDTH), "cross"), ((8, 49, WIDTH), "residual-concat"), ((8, 24), "residual-concat")],
)
def test_embeddings_that_are_banked_take_the_place_of_pixels_in_both_streams(shape, usage):
    made = network(shape=shape, usage=usage)
    state, real, clips = some(shape=shape)
    banked = {role: values.half() / 255 for role, values in clips.items()}
    scores = made(state, real, banked)
    assert scores.shape == (2,)
    for role in banked:
        moved = {**banked, role: banked[role].roll(1, dims=0)}
        assert bool((made(state, real, moved) != scores).all())


def test_shifted_layers_carry_what_a_frame_tells_beyond_its_pair():
    state = torch.randn(1, 8, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    moved = state.clone()
    moved[:, 2] += torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    for layers, reached in ((1, [2, 3]), (2, [1, 2, 3, 4])):
        layer = drawn(
            lambda layers=layers: TemporalInteraction(
                WIDTH, 2, layers=layers, frames=4, messages=False
            ),
            generator,
        )
        changed = (layer(moved) != layer(state)).flatten(2).any(dim=2)[0]
        assert changed.nonzero()[:, 0].tolist() == reached


def test_messages_carry_what_a_part_tells_to_all_others():
    state = torch.randn(1, 8, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    moved = state.clone()
    moved[:, 2, 0] += 1
    layer = drawn(lambda: CrossClip(WIDTH, 2, frames=4), torch.Generator().manual_seed(2))
    assert bool((layer(moved) != layer(state)).flatten(2).any(dim=2).all())


def test_patches_are_weighted_by_their_likeness_to_the_adapted_token():
    modulation = drawn(lambda: Modulation(WIDTH), torch.Generator().manual_seed(0))
    state = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    out = modulation(state)
    adapted = modulation.phi(state[:, 0])
    torch.testing.assert_close(out[:, 0], adapted)
    cosine = nn.functional.cosine_similarity(adapted[:, None], state[:, 1:], dim=2)
    torch.testing.assert_close(out[:, 1:], cosine[..., None] * state[:, 1:])
    modulation.importance, modulation.blend = False, 0.5
    out = modulation(state)
    assert torch.equal(out[:, 1:], state[:, 1:])
    torch.testing.assert_close(out[:, 0], (adapted + state[:, 0]) / 2)


def test_a_network_is_drawn_from_its_generator_alone():
    torch.manual_seed(5)
    one = network(seed=3)
    before = torch.get_rng_state()
    made = [drawn(lambda: TechnicalBranch(SMALL, sizes()), torch.Generator().manual_seed(3))
            for _ in range(2)]  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    for first, second in zip(*(part.parameters() for part in made), strict=True):
        assert torch.equal(first, second)
    assert all(bool(value.isfinite().all()) for value in one.parameters())


def test_attention_starts_as_pytorchs_whose_last_bias_is_zero():
    made = drawn(lambda: nn.MultiheadAttention(WIDTH, 2), torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for (name, own), other in zip(
        made.named_parameters(), nn.MultiheadAttention(WIDTH, 2).parameters(), strict=True
    ):
        assert bool(own.any()) == bool(other.any()), name
        assert own.detach().std().item() == pytest.approx(other.detach().std().item(), rel=0.1)


def test_every_fragment_has_a_score_of_its_own():
    made = network()
    state, real, clips = some()
    scores = made.local(state, real, clips)
    assert scores.shape == (2, 3, GRID * GRID)
    assert len(scores[0, 0].unique()) == GRID * GRID
