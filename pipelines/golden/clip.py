"""Players of CLIP ViT-B/32 and of LIQE."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbank.extractors.clip import Clip
from vqbank.extractors.liqe import PROMPTS, Liqe
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, normalise
from vqbank.pipelines.golden.fixture import Check, Fixture, checkpoint, frames

_CPU = torch.device("cpu")
# Entries of OpenAI's own state dict beside the tensors.
_SIZES = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}


def play_clip_b32_tokens(fixture: Fixture) -> Iterator[Check]:
    """Tokens after blocks, embedding and text of ViT-B/32, and what a wrong GELU would give."""
    import open_clip

    relative = fixture.recipe["tolerance"]["rel_to_max"]
    pictures = _channels_first(frames(*fixture.input["frames"]))
    sizes = {key: torch.tensor(value) for key, value in _SIZES.items()}
    with checkpoint({**fixture.state_dict(), **sizes}) as path:
        weights = str(path)
        extractor = Clip(weights=weights)
        network: Any = extractor.load().eval()
        yield fixture.keys(network.state_dict())
        pixels = normalise(extractor.view(pictures), CLIP_MEAN, CLIP_STD)
        with torch.inference_mode():
            first = network.visual.conv1(pixels[:1])[0].flatten(1)
            yield fixture.close("conv1", _thinned(fixture, "conv1", first, axis=0), relative)
            tokens = open_clip.SimpleTokenizer()(fixture.input["words"], 77)
            yield fixture.equal("tokens", tokens)
            yield fixture.close("text", network.encode_text(tokens), relative)
        del network

        yield fixture.close("embedding", _rows(extractor, pictures, "embedding"), relative)
        # What open_clip's ViT-B-32 gives, which has GELU: the choice of the model counts.
        plain = Clip(weights=weights, model="ViT-B-32")
        yield fixture.close("embedding_wrong_gelu", _rows(plain, pictures, "embedding"), relative)
        for what in fixture.expected:
            if match := re.fullmatch(r"block(\d+)", what):
                cut = Clip(weights=weights, cut=int(match[1]), outputs=("tokens",))
                state = _rows(cut, pictures, "tokens")
                yield fixture.close(what, _thinned(fixture, what, state, axis=2), relative)
                if f"{what}_stats" in fixture.expected:
                    values = state.double()
                    stats = [values.mean(), values.std(correction=0), values.abs().mean()]
                    stats += [values.min(), values.max()]
                    yield fixture.close(f"{what}_stats", torch.stack(stats), relative)


def play_liqe_495(fixture: Fixture) -> Iterator[Check]:
    """Prompts, text features, patches, embeddings and logits at every size that the npz has."""
    import open_clip

    tolerance = fixture.recipe["tolerance"]
    logits_absolute = float(tolerance["logits"].split()[0])
    relative = float(tolerance["features"].split()[0])
    prompts = "\n".join(PROMPTS).encode()
    yield fixture.equal("prompts_joined_newline.sha256", _sha256(prompts))
    tokens = open_clip.SimpleTokenizer()(list(PROMPTS), 77).int().numpy()
    yield fixture.equal("tokens_int32.sha256", _sha256(tokens.tobytes()))
    shown = fixture.expected["tokens_first2_last1"].shape[1]
    yield fixture.equal("tokens_first2_last1", tokens[[0, 1, -1], :shown])

    with checkpoint(fixture.state_dict(), "LIQE.pt") as path:
        extractor = Liqe(weights=str(path), outputs=("feature", "logits"))
        network: Any = extractor.load().eval()
        yield fixture.keys(network.state_dict())
        text = extractor.text(_CPU)
        compare = extractor.build(_CPU)
    yield from fixture.sampled("text_features", torch.from_numpy(text.values), relative)
    yield fixture.close("logit_scale_exp", np.array([text.scale]), relative)

    for what in fixture.expected:
        match = re.fullmatch(r"((\d+)x(\d+))\.logits", what)
        if match is None:
            continue
        size, height, width = match[1], int(match[2]), int(match[3])
        name = f"{fixture.name}/{fixture.letter}/{size}"
        picture = _channels_first(frames(name, 1, height, width))
        rows, columns = extractor.view.grid(height, width)
        cells = extractor.view.cells(height, width)
        yield fixture.equal(f"{size}.n_patches", np.array([rows * columns, rows, columns]))
        yield fixture.equal(f"{size}.patch_rowcol", cells)
        yield fixture.equal(f"{size}.patch_index", cells @ [columns, 1])
        patches = extractor.view(picture)
        pixels = normalise(patches[0], CLIP_MEAN, CLIP_STD)
        yield from fixture.sampled(f"{size}.patches", pixels, relative)
        with torch.inference_mode():
            embeddings = network.visual(pixels)
            ours = compare(patches[None])
        yield from fixture.sampled(f"{size}.image_features", embeddings, relative)
        yield fixture.close(f"{size}.mean_unit_feature", ours["feature"][0, 0], relative)
        yield fixture.close(f"{size}.logits", ours["logits"][0, 0], absolute=logits_absolute)


def _rows(extractor: Clip, pictures: Tensor, output: str) -> Tensor:
    """What the extractor banks of pictures: [n, ...]."""
    with torch.inference_mode():
        return extractor.build(_CPU)(extractor.view(pictures)[:, None])[output][:, 0]


def _thinned(fixture: Fixture, what: str, got: Tensor, *, axis: int) -> Tensor:
    """Every n-th entry of an axis, as many as the fixture keeps."""
    kept = fixture.expected[what].shape[axis]
    step = got.shape[axis] // kept
    return got.index_select(axis, torch.arange(0, step * kept, step))


def _sha256(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def _channels_first(pictures: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)
