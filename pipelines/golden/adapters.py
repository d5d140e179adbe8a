"""Players of what learns inside frozen CLIP towers: KSVQE's adapters, CoOp's prompts."""

from collections.abc import Iterator, Mapping
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, interpolate, normalize

from vqbank.pipelines.golden.fixture import Check, Fixture, fill
from vqbank.pipelines.golden.interaction import drawn, embedded, entries
from vqbank.regressors.prompt_learner import PromptLearner
from vqbank.regressors.ram_network import AestheticBranch, Modulation
from vqbank.regressors.tail import ImageTail, TextTail

_FIRST = 8  # block of KSVQE behind which an adapter stands
_BLOCKS = 12
_CONTEXT = 16


def play_ksvqe_adapter(fixture: Fixture) -> Iterator[Check]:
    """States before and after each adapter, the cosines, and RAM-VQA's form of the adapter."""
    relative = fixture.recipe["tolerance"]["rel_to_max"]
    tower = entries(fixture, "CLIP_tool.visual.")
    width = len(tower["class_embedding"])
    branch = _adapted(fixture, tower, width, blend=0.5, importance=False)
    tail: Any = branch.tail.network
    for size, given in fixture.input.items():
        if size == "preprocessing":
            continue
        pixels = drawn(given["array"])
        side = tower["conv1.weight"].shape[-1]
        grid = pixels.shape[-2] // side, pixels.shape[-1] // side
        places = {"positional_embedding": _resized(tower["positional_embedding"], grid)}
        state = embedded(pixels, {**tower, **places})
        before = {}
        for number in range(_BLOCKS):
            before[number] = tail.block(number, state)
            if number >= _FIRST - 1:
                found = before[number].transpose(0, 1)
                yield fixture.close(f"{size}_block{number}", found, relative)
            state = before[number]
            if number >= _FIRST:
                modulation: Any = branch.modulations[str(number)]
                phi = modulation.phi(state[:, 0])
                yield fixture.close(f"{size}_phi{number}", phi, relative)
                state = modulation(state)
                yield fixture.close(f"{size}_cls{number}", state[:, 0], relative)
        token, patches = state[:, :1], state[:, 1:]
        attention = cosine_similarity(token, patches, dim=-1)
        yield fixture.close(f"{size}_cls_attn", attention, relative)
        yield fixture.close(f"{size}_cls_token", token, relative)
        yield fixture.close(f"{size}_patches", patches[None], relative)
        weights = drawn([f"ksvqe_adapter/{fixture.letter}/{size}/g", list(attention.shape)])
        adapter: Any = branch.modulations[str(_FIRST)]
        (gradient,) = torch.autograd.grad((attention * weights).sum(), adapter.phi[0].weight)
        yield fixture.close(f"{size}_gadapter", gradient, relative)
        for number in (_FIRST, _BLOCKS - 1):
            for blend, name in ((1.0, ""), (0.5, "_blend")):
                weighted = _adapted(fixture, tower, width, blend=blend, importance=True)
                out = weighted.modulations[str(number)](before[number])
                what = f"{size}_reweight{name}{number}"
                yield fixture.close(what, out.transpose(0, 1), relative)
                importance = cosine_similarity(out[:, :1], before[number][:, 1:], dim=-1)
                what = f"{size}_I{name.removeprefix('_')}{number}"
                yield fixture.close(what, importance.T, relative)


def _adapted(
    fixture: Fixture, tower: Mapping[str, Tensor], width: int, *, blend: float, importance: bool
) -> AestheticBranch:
    """All blocks of the tower, which is cut before the first, with the fixture's adapters."""
    tail = ImageTail(
        width=width,
        heads=4,
        hidden=4 * width,
        activation="quick_gelu",
        cut=-1,
        layers=_BLOCKS,
        embedding=tower["proj"].shape[1],
    )
    resblocks = "transformer.resblocks."
    tail.load_state_dict(
        {
            key.replace(resblocks, "blocks."): value
            for key, value in tower.items()
            if key.startswith((resblocks, "ln_post.", "proj"))
        }
    )
    modulations = {}
    for number in range(_FIRST, _BLOCKS):
        own = entries(fixture, f"CLIP_tool.adapter_layer.{number - _FIRST}.")
        modulations[number] = Modulation(width, blend=blend, importance=importance)
        modulations[number].phi.load_state_dict(own)
    return AestheticBranch(tail, modulations)


def _resized(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """KSVQE's places of another grid, bicubic; those of the class token stay."""
    first, places = table[:1], table[1:]
    side = int(len(places) ** 0.5)
    if grid == (side, side):
        return table
    picture = places.T.unflatten(1, (side, side))[None]
    resized = interpolate(picture, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([first, resized[0].flatten(1).T])


def play_coop_text(fixture: Fixture) -> Iterator[Check]:
    """Prompts with learnt contexts of every kind, their features, losses and gradients."""
    tolerance = fixture.recipe["tolerance"]
    relative, of_gradients = tolerance["rel_to_max"], tolerance["gradients rel_to_max"]
    given = fixture.input
    official = entries(fixture, "")
    text = _text_tower(official)
    scale = official["logit_scale"].exp()
    images = normalize(drawn(given["image_features"]["array"]), dim=1)
    labels = torch.tensor(given["labels"])
    names = [name.replace("_", " ") for name in given["class_names"]]
    for case in ("csc_end", "generic_end", "csc_middle", "csc_front", "csc_end_nodot"):
        kind, place, *rest = case.split("_")
        stop = "" if rest else "."
        tokens = _tokens([f"{'X ' * _CONTEXT}{name}{stop}" for name in names])
        yield fixture.equal(f"{case}_tokens", tokens)
        lengths = [len(open_clip.SimpleTokenizer().encode(name)) for name in names]
        order = torch.stack([_order(place, length, tokens.shape[1]) for length in lengths])
        moved = tokens.gather(1, order)
        places = ((order >= 1) & (order <= _CONTEXT)).nonzero()[:, 1].view(len(names), _CONTEXT)
        learner = PromptLearner(text, moved, places, shared=kind == "generic")
        name, shape = given["ctx_keys"][kind]
        learner.context.data = torch.from_numpy(fill(name, tuple(shape)))
        embeddings = learner.embeddings()
        # What lies behind the last end is left out here.
        behind = text.embed(moved[:, embeddings.shape[1] :])
        shown = torch.cat([embeddings, behind], dim=1)[:, :24, ::4]
        yield fixture.close(f"{case}_prompts", shown, relative)
        features = learner()
        yield fixture.close(f"{case}_text", features, relative)
        for suffix, factor in (("", scale), ("_s1", torch.tensor(1.0))):
            logits = factor * images @ normalize(learner(), dim=1).T
            loss = cross_entropy(logits, labels)
            yield fixture.close(f"{case}_loss{suffix}", loss, relative)
            (gradient,) = torch.autograd.grad(loss, learner.context)
            if case not in ("csc_end", "generic_end"):
                gradient = gradient[..., ::4]
            yield fixture.close(f"{case}_gctx{suffix}", gradient, of_gradients)


def _tokens(prompts: list[str]) -> Tensor:
    tokens: Tensor = open_clip.SimpleTokenizer()(prompts, 77)
    return tokens


def _order(place: str, name: int, length: int) -> Tensor:
    """Where each token comes from, of start, context, a name of so many tokens, and the rest."""
    context = list(range(1, 1 + _CONTEXT))
    named = list(range(1 + _CONTEXT, 1 + _CONTEXT + name))
    half = _CONTEXT // 2
    middle = {
        "end": context + named,
        "front": named + context,
        "middle": context[:half] + named + context[half:],
    }[place]
    return torch.tensor([0, *middle, *range(1 + _CONTEXT + name, length)])


def _text_tower(official: Mapping[str, Tensor]) -> TextTail:
    width, embedding = official["text_projection"].shape
    context, vocabulary = (
        len(official["positional_embedding"]),
        len(official["token_embedding.weight"]),
    )
    layers = {key.split(".")[2] for key in official if key.startswith("transformer.resblocks.")}
    text = TextTail(
        width=width,
        heads=width // 64,
        hidden=4 * width,
        activation="quick_gelu",
        layers=len(layers),
        embedding=embedding,
        context=context,
        vocabulary=vocabulary,
    )
    text.load_state_dict(
        {
            key.replace("transformer.resblocks.", "blocks."): value
            for key, value in official.items()
            if key != "logit_scale"
        }
    )
    return text
