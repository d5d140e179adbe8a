"""Q-CLIP's network on small towers; what official code computes is the fixture `qclip_head`."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from vqbank.extractors.pe import LEVELS, Pe
from vqbank.pipelines.commands.cli import app
from vqbank.pipelines.experiments.experiment import Experiment
from vqbank.pipelines.experiments.fits import Cell
from vqbank.pipelines.experiments.further import FurtherSet
from vqbank.pipelines.experiments.rated import RatedVideos
from vqbank.pipelines.over_time import over_time
from vqbank.pipelines.recipe import Protocol, read_recipe
from vqbank.regressors import HEADS, load_head, make_head
from vqbank.regressors.losses import plcc_rank_loss
from vqbank.regressors.metrics import srcc
from vqbank.regressors.qclip import QClip, _fixed_prompts_of
from vqbank.regressors.scma import FixedPrompts, QClipNetwork, Scma
from vqbank.regressors.tail import ImageTail, TextTail, image_tail, text_tail
from vqbank.store.bank import FeatureStore
from vqbank.store.errors import HeadError
from vqbank.store.schema import Feature, Fingerprint, Video
from vqbank.store.tail import write_tail
from vqbank.testing import HeadContract

TOWER = {"width": 16, "heads": 2, "hidden": 32, "activation": "gelu", "embedding": 16}
TOKENS = torch.tensor([[7, 1, 1, 1, 2, 8, 0, 0], [7, 1, 1, 1, 3, 4, 8, 0]])


def filled(tower):
    draw = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(value.shape, generator=draw) * 0.3
        for name, value in tower.state_dict().items()
    }
    tower.load_state_dict(state)
    return tower.eval().requires_grad_(False)


def towers(**text):
    image = ImageTail(**TOWER, cut=1, layers=4, places=5, pool_heads=2)
    return filled(image), filled(
        TextTail(**{**TOWER, "layers": 4, "context": 8, "vocabulary": 9, **text})
    )


@pytest.fixture
def network():
    return network_of(*towers()).eval()


@pytest.fixture
def state():
    """Three videos of two frames."""
    return torch.randn(3, 2, 5, 16, generator=torch.Generator().manual_seed(1))


def network_of(image, text, tokens=TOKENS, **given):
    usual = {"adapted": 3, "inner": 4, "wiring": "sequential"}
    draw = torch.Generator().manual_seed(0)
    return QClipNetwork(image, text, tokens, **{**usual, **given}, generator=draw)


def silenced(network):
    with torch.no_grad():
        for name, value in network.scma.named_parameters():
            if name.endswith("adapter_weight"):
                value.zero_()
    return network


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({"wiring": "parallel", "inner": 8}, 139_555),  # "0.14 M" of the paper
        ({"wiring": "parallel", "inner": 4}, 82_027),
        ({"wiring": "parallel", "inner": 16}, 254_899),
        ({"wiring": "parallel", "inner": 128}, 1_910_035),
        ({"wiring": "sequential", "inner": 128}, 1_907_977),  # the official code
    ],
)
def test_as_many_numbers_are_learnt_as_the_paper_and_the_code_say(given, count):
    with torch.device("meta"):
        learnt = Scma(
            width=1024, embedding=1024, blocks=range(18, 24), prompts=5,
            context=torch.empty(1, 3, 1024), sharing="layers", towers="both",
            generator=torch.Generator(), **given,
        )  # fmt: skip
    assert sum(value.numel() for value in learnt.parameters()) == count


def test_without_what_adapters_add_the_towers_are_the_frozen_ones(network, state):
    silenced(network)
    image, text = towers()
    *_, last = network.states(state[0])
    assert torch.equal(network.frame(last), image(state[0]))
    whole = text(text.embed(TOKENS), TOKENS.argmax(dim=1))
    unit = torch.nn.functional.normalize(whole, dim=1)
    # The short prompts are summed in another order.
    torch.testing.assert_close(network.levels(), unit, atol=1e-6, rtol=0)


def test_every_adapter_says_something_in_its_place(network, state):
    plain = [value.clone() for value in network.states(state[0])]
    assert len(plain) == 3
    levels = network.levels()
    for place, number in enumerate(("1", "2", "3")):
        norm = network.scma.encoder_adapters[number]["ln"]
        with torch.no_grad():
            norm.bias.add_(1)
        changed = list(network.states(state[0]))
        assert all(torch.equal(*pair) for pair in zip(plain[:place], changed[:place], strict=True))
        assert not torch.equal(plain[place], changed[place])
        assert not torch.equal(levels, network.levels())
        with torch.no_grad():
            norm.bias.sub_(1)


def test_a_score_is_a_weighted_sum_of_similarities_of_the_mean_frame(network, state):
    scores = network(state)
    *_, last = network.states(state[1])
    video = network.video(network.frame(last)[None])
    expected = (video @ network.levels().T @ network.scma.score_proj).squeeze()
    torch.testing.assert_close(scores[1], expected)
    assert scores.shape == (3,)


def test_a_score_does_not_depend_on_company_nor_on_the_order_of_frames(network, state):
    scores = network(state)
    torch.testing.assert_close(network(state[1:2])[0], scores[1], atol=1e-6, rtol=0)
    torch.testing.assert_close(network(state.flip(1)), scores, atol=1e-6, rtol=0)


def test_all_that_is_learnt_gets_a_gradient_and_the_towers_get_none(network, state):
    network(state).square().sum().backward()
    for name, value in network.scma.named_parameters():
        assert value.grad is not None, name
        assert value.grad.abs().max() > 0, name
    assert all(value.grad is None for value in network.image.parameters())
    assert all(value.grad is None for value in network.text.parameters())


def test_learning_starts_from_the_words_that_are_replaced(network):
    embedded = network.text.embed(TOKENS)
    assert torch.equal(network.scma.context_tokens[0], embedded[0, 1:4])
    assert torch.equal(network.scma.context_tokens[0], embedded[1, 1:4])


def test_an_official_checkpoint_is_taken_without_what_it_never_runs(network):
    draw = torch.Generator().manual_seed(3)
    official = {
        f"module.{key}": torch.randn(value.shape, generator=draw)
        for key, value in network.scma.state_dict().items()
    }
    idle = {
        "module.encoder_adapters.0.ln.bias": torch.zeros(16),
        "module.clip_model.logit_scale": torch.zeros(()),
    }
    network.scma.load_official({**official, **idle})
    for key, value in network.scma.state_dict().items():
        assert torch.equal(value, official[f"module.{key}"])


def test_a_checkpoint_of_something_else_is_refused(network):
    state = dict(network.scma.state_dict())
    with pytest.raises(HeadError, match=r"score_proj has shape \(5, 1\); here it is \(2, 1\)"):
        network.scma.load_official({**state, "score_proj": torch.zeros(5, 1)})
    del state["shared_core.0.bias"]
    with pytest.raises(HeadError, match=r"have no shared_core\.0\.bias"):
        network.scma.load_official(state)


@pytest.mark.parametrize("other", [{"width": 32}, {"embedding": 8}, {"layers": 3}])
def test_towers_that_cannot_share_adapters_are_refused(other):
    with pytest.raises(HeadError, match="towers of one width, one embedding and as many blocks"):
        network_of(*towers(**other))


# The head.

PE = Pe(weights="random-tiny", outputs=("tokens", "pooled"), cut=17)
NOISE = 0.02


def states_of(n, *, seed, rows=8):
    """Honest random states, and a MOS of what Perception Encoder would make of them."""
    draw = torch.Generator().manual_seed(1000 + seed)
    content = torch.randn(n, 1, PE.sizes.tokens, PE.sizes.width, generator=draw)
    noise = torch.randn(n, rows, PE.sizes.tokens, PE.sizes.width, generator=draw)
    return content + 0.3 * noise


@pytest.fixture(scope="module")
def tails(tmp_path_factory):
    """The two tails, as extraction writes them."""
    return {output: PE.tail(output) for output in ("tokens", "pooled")}


@pytest.fixture(scope="module")
def bank_of(tails, tmp_path_factory):
    """Gives a bank of n videos and their MOS, which is a direction of the frozen feature."""

    @lru_cache(maxsize=16)
    def made(n, seed=0, rows=8):
        store = FeatureStore.create(tmp_path_factory.mktemp("qclip") / "bank")
        specs = PE.specs(decoder="pyav")
        states = states_of(n, seed=seed, rows=rows)
        image = image_tail(tails["tokens"].towers["image"], store.path)
        with torch.inference_mode():
            state = states.flatten(0, 1)
            for number in image.numbers:
                state = image.block(number, state)
            pooled = image.pool(state).unflatten(0, states.shape[:2])
            feature = image.project(pooled).mean(dim=1)
        direction = torch.randn(feature.shape[1], generator=torch.Generator().manual_seed(5))
        mos = (torch.nn.functional.normalize(feature, dim=1) @ direction).double().numpy()
        mos = 3 + (mos - mos.mean()) / mos.std()
        mos += NOISE * np.random.default_rng(seed).normal(size=n)
        for output, values in {"tokens": states.half(), "pooled": pooled}.items():
            spec = specs[output]
            with store.writer(spec, provenance={}) as writer:
                for row, own in enumerate(values.numpy()):
                    own = own.astype(spec.storage_dtype)
                    times = Feature(own, np.arange(float(rows)), np.arange(rows))
                    printed = Fingerprint(1, f"{row:064x}")
                    writer.add(f"set/{row}.mp4", times, fingerprint=printed, probe={})
            write_tail(store, spec, tails[output])
        return store, mos

    return made


def table_in(store, n, output, *, scenes=None):
    videos = [
        Video(f"set/{row}.mp4", Path(f"{row}.mp4"), scene=str(row % scenes) if scenes else None)
        for row in range(n)
    ]
    return store.table(videos, {output: f"pe.{output}"})


class TestContract(HeadContract):
    """On frames after pooling, where nothing but P-SCMA and the weights of prompts is learnt."""

    @pytest.fixture
    def head(self):
        return make_head("qclip", epochs=3, memory_gib=0.1)

    @pytest.fixture(autouse=True)
    def _banks(self, bank_of):
        self.bank_of = bank_of

    def table_of(self, n, *, seed=0, scenes=None):
        store, mos = self.bank_of(n, seed)
        return table_in(store, n, "pooled", scenes=scenes), mos.copy()


class TestContractWithAdapters(TestContract):
    """On states, with adapters in the last block of the image tower."""

    @pytest.fixture
    def head(self):
        return make_head(
            "qclip", adapted_blocks=1, towers="image", bottleneck=2, epochs=2, warmup_epochs=0,
            memory_gib=0.1, batch_size=30,
        )  # fmt: skip

    def table_of(self, n, *, seed=0, scenes=None):
        store, mos = self.bank_of(n, seed)
        return table_in(store, n, "tokens", scenes=scenes), mos.copy()


# From the bank as from pixels.


def by_cut(form, adapted, pictures, cut, *, half=False):
    """Scores of videos of pictures [n, f, 3, h, w], and gradients of all that is learnt."""
    extractor = replace(PE, cut=cut)
    tail = extractor.tail("tokens")
    network = network_of(
        image_tail(tail.towers["image"], Path("tail")),
        text_tail(tail.towers["text"], Path("tail")),
        torch.tensor([tail.tokens[prompt] for prompt in LEVELS]),
        adapted=adapted,
        wiring=form,
    )
    with torch.no_grad():
        *_, states = extractor.load().eval().states(pictures.flatten(0, 1), cut)
        states = states.half().float() if half else states
    scores = network(states.unflatten(0, pictures.shape[:2]))
    plcc_rank_loss(scores, torch.arange(len(scores)).float()).backward()
    gradients = {
        name: value.grad for name, value in network.named_parameters() if value.requires_grad
    }
    return scores.detach(), gradients


@pytest.mark.parametrize(
    ("form", "adapted", "cut"),
    [("parallel", 6, 17), ("sequential", 6, 17), ("sequential", 6, 18), ("parallel", 2, 17)],
)
def test_from_the_bank_scores_and_gradients_are_those_from_pixels(form, adapted, cut):
    """Behind the first block, so that all blocks which could matter are run with adapters."""
    pictures = torch.rand(3, 2, 3, 56, 56, generator=torch.Generator().manual_seed(4)) * 2 - 1

    scores, gradients = by_cut(form, adapted, pictures, cut)
    whole, expected = by_cut(form, adapted, pictures, 0)

    torch.testing.assert_close(scores, whole, rtol=1e-4, atol=1e-6)
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        largest = value.abs().max()
        assert largest > 0, name
        assert (gradients[name] - value).abs().max() <= 1e-4 * largest, name


def test_states_in_half_precision_change_scores_by_little():
    pictures = torch.rand(3, 2, 3, 56, 56, generator=torch.Generator().manual_seed(4)) * 2 - 1

    halves, _ = by_cut("parallel", 6, pictures, 17, half=True)
    whole, _ = by_cut("parallel", 6, pictures, 17)

    assert (halves - whole).abs().max() < 2e-3 * whole.abs().max()


# Learning.


def test_adapters_learn_what_blocks_lose(tails, tmp_path):
    """Tokens lie to both sides of one direction, the farther the better the video: no linear map
    of their mean tells how far, and that is all that is left of them behind the pooling."""
    n, width = 160, PE.sizes.width
    draw = torch.Generator().manual_seed(2)
    quality = torch.rand(n, generator=draw)
    side = torch.tensor([1.0, -1.0]).repeat(9)[:17, None]
    direction = torch.nn.functional.normalize(torch.randn(width, generator=draw), dim=0)
    states = 2 * quality[:, None, None, None] * side * direction
    states = states + torch.randn(n, 2, 17, width, generator=draw)
    store = FeatureStore.create(tmp_path / "bank")
    spec = PE.specs(decoder="pyav")["tokens"]
    with store.writer(spec, provenance={}) as writer:
        for row, own in enumerate(states.half().numpy()):
            times = Feature(own, np.arange(2.0), np.arange(2))
            printed = Fingerprint(1, "0" * 64)
            writer.add(f"set/{row}.mp4", times, fingerprint=printed, probe={})
    write_tail(store, spec, tails["tokens"])
    table, mos, fit = table_in(store, n, "tokens"), quality.double().numpy(), np.arange(120)

    found = {}
    for adapted in (0, 6):
        head = make_head(
            "qclip", adapted_blocks=adapted, towers="image", frames=2, epochs=16, bottleneck=16,
            learning_rate=1e-2,
        )  # fmt: skip
        head.fit(table.subset(fit), mos[fit])
        found[adapted] = srcc(mos[120:], head.predict(table.subset(np.arange(120, n))))

    assert found[6] > 0.7
    assert found[0] < 0.4


def test_a_head_takes_what_it_stands_on_along(bank_of, tmp_path):
    store, mos = bank_of(30)
    table = table_in(store, 30, "tokens")
    head = make_head(
        "qclip", adapted_blocks=6, context="learnt", bottleneck=2, epochs=1, warmup_epochs=0,
        batch_size=30,
    ).fit(table, mos)  # fmt: skip

    head.save(tmp_path)
    head.pack(tmp_path, table)

    loaded = load_head(tmp_path)
    assert set(loaded.record_["companions"]["tokens"]) == {"tail/image", "tail/text", "tokens"}
    assert loaded.predict(table).tobytes() == head.predict(table).tobytes()
    assert sum(path.stat().st_size for path in tmp_path.glob("model-*")) < 100_000


def test_train_packs_where_it_is_told_to(bank_of, tmp_path):
    store, mos = bank_of(30)
    rows = [f"set/{row}.mp4,{row}.mp4,{score}" for row, score in enumerate(mos)]
    (tmp_path / "set.csv").write_text("\n".join(["id,path,mos", *rows]) + "\n")
    line = ["train", "--videos", tmp_path / "set.csv", "--bank", store.path, "--head", "qclip",
            "--features", "pooled=pe.pooled", "--set", "qclip.epochs=1", "--set",
            "qclip.warmup_epochs=0", "-o", tmp_path / "head", "--pack"]  # fmt: skip

    done = CliRunner().invoke(app, [str(word) for word in line], catch_exceptions=False)

    assert done.exit_code == 0, done.output
    assert list((tmp_path / "head" / "companions").glob("pe.pooled@*/tail/*.safetensors"))


def test_a_head_predicts_on_a_processor_that_rounds_otherwise(bank_of, tmp_path, monkeypatch):
    """Fixed prompts go through the text tower where they are used, and come to other last bits."""
    store, mos = bank_of(30)
    table = table_in(store, 30, "pooled")
    head = make_head("qclip", epochs=2).fit(table, mos)
    head.save(tmp_path)
    here = FixedPrompts.of

    def elsewhere(text, tokens):
        found = here(text, tokens)
        return found._replace(pooled=found.pooled * (1 + 2**-22))

    monkeypatch.setattr(FixedPrompts, "of", elsewhere)
    _fixed_prompts_of.cache_clear()
    try:
        predicted = load_head(tmp_path).predict(table)
    finally:
        _fixed_prompts_of.cache_clear()

    np.testing.assert_allclose(predicted, head.predict(table), atol=1e-4)


def test_recipes_decay_weights_as_the_official_code_does():
    large = ("table1", "table3", "table4", "figure5", "adapter-size")
    for name, decay in {**dict.fromkeys(large, 1e-4), "table2": 5e-2}.items():
        recipe = read_recipe(Path(f"qclip-{name}"))
        for label in recipe.heads:
            kind, parameters = recipe.head(label)
            assert make_head(kind, **parameters).weight_decay == decay, (name, label)


def test_kept_heads_on_towers_are_tested_on_a_set_that_is_named_later(
    bank_of, tmp_path, monkeypatch
):
    store, mos = bank_of(30)
    table = table_in(store, 30, "pooled")
    trained, *sets = (
        RatedVideos(table.subset(rows), mos[rows])
        for rows in (np.arange(20), np.arange(20, 25), np.arange(25, 30))
    )
    cell = Cell("qclip", make_head("qclip", epochs=2, memory_gib=0.1), ("pooled",))
    one, two = (FurtherSet(str(number), rated) for number, rated in enumerate(sets))
    made = Experiment("t", trained, [cell], Protocol(splits="all"), [one])
    (whole,) = replace(made, sets=[one, two]).run()
    list(made.run(keep=tmp_path))
    monkeypatch.setattr(type(cell.head), "fit_many", None)  # nothing is trained again

    (later,) = replace(made, sets=[one, two]).run(keep=tmp_path)

    assert [own.predicted for own in later.heads[0].sets] == [
        own.predicted for own in whole.heads[0].sets
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"adapted_blocks": 7}, "beside block 17, and needs the state after block 16 or before"),
        ({"adapted_blocks": 8, "wiring": "sequential"}, "behind block 16, and needs the state"),
        ({"adapted_blocks": 25}, "25 blocks cannot have adapters: the towers have 24"),
        ({"frames": 3}, "a video has 8 rows, which are no choices of 3 frames"),
    ],
)
def test_a_head_that_the_bank_cannot_feed_says_what_to_change(bank_of, given, message):
    store, mos = bank_of(30)

    with pytest.raises(HeadError, match=message):
        make_head("qclip", **given).fit(table_in(store, 30, "tokens"), mos)


def test_adapters_in_blocks_need_states(bank_of):
    store, mos = bank_of(30)

    with pytest.raises(HeadError, match=r"take pe\.tokens in place of pe\.pooled"):
        make_head("qclip", preset="paper").fit(table_in(store, 30, "pooled"), mos)


def test_of_several_choices_of_frames_training_takes_any_and_tests_take_the_first(bank_of):
    store, mos = bank_of(30, 0, 16)
    table = table_in(store, 30, "pooled")
    seen = []

    class Watched(QClip):
        def _network(self, inputs, generator):
            network = super()._network(inputs, generator)
            network.register_forward_pre_hook(
                lambda module, given: seen.append((module.training, given[0].values["pooled"]))
            )
            return network

    Watched(epochs=3, batch_size=40, context="learnt").fit(table, mos)

    first = torch.from_numpy(np.stack([rows[:8] for rows in table.arrays("pooled")])).float()
    drawn = {
        tuple((rows[:, None] == first[None]).flatten(2).all(2).any(1).tolist())
        for training, rows in seen
        if training
    }
    assert len(drawn) > 1
    assert any(0 < sum(one) < len(one) for one in drawn)
    for training, rows in seen:
        assert rows.shape[1] == 8
        if not training:
            assert all((one == first).flatten(1).all(1).any() for one in rows)


def test_the_mean_of_frames_goes_through_the_projection_as_their_features_do():
    image, text = towers()
    network = network_of(image.proj.detach(), text, adapted=0).eval()
    pooled = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True] * 4, [True, True, True, False], [True, False, False, False]])

    features = pooled @ image.proj + network.scma.added("image", pooled)

    torch.testing.assert_close(network.pooled_video(pooled, mask), network.video(features, mask))


def test_seconds_of_a_video_are_scored_by_windows_of_fewer_frames(bank_of):
    store, mos = bank_of(30)
    table = table_in(store, 30, "pooled")
    head = make_head("qclip", epochs=2).fit(table, mos)

    found = over_time(head, table.subset([0, 1]))

    assert [len(one.scores) for one in found] == [8, 8]  # a frame each second
    assert all(np.isfinite(one.scores).all() and one.scores.std() > 0 for one in found)


# Official weights.


def test_official_weights_are_a_head(bank_of, tmp_path):
    store, _ = bank_of(30)
    table = table_in(store, 30, "tokens")
    draw = torch.Generator().manual_seed(0)
    image, text = (PE.tail("tokens").towers[name] for name in ("image", "text"))
    network = network_of(
        image_tail(image, tmp_path), text_tail(text, tmp_path), torch.tensor(
            [PE.tail("tokens").tokens[prompt] for prompt in LEVELS]
        ), adapted=6, inner=128,
    )  # fmt: skip
    state = {
        f"module.{name}": torch.randn(value.shape, generator=draw) * 0.1
        for name, value in network.scma.state_dict().items()
    }
    network.scma.load_official(state)
    state |= {  # what the official file has and does not run
        "module.encoder_adapters.3.ln.bias": torch.zeros(32),
        "module.clip_model.logit_scale": torch.zeros(()),
        "module.token_embedding": torch.zeros(5, 32, 32),
    }
    torch.save(state, tmp_path / "qclip.pth")

    head = HEADS["qclip"].published(tmp_path / "qclip.pth", table)

    with torch.inference_mode():
        states = torch.stack(table.tensors("tokens"))
        expected = network.eval()(states.float())
    np.testing.assert_allclose(head.predict(table), expected, atol=1e-5)
    head.save(tmp_path / "head")
    assert load_head(tmp_path / "head").predict(table).tobytes() == head.predict(table).tobytes()
