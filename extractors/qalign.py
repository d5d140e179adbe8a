"""Q-Align: what a language model makes of the two halves of key frames."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vqbank.extractors.base import ClipFn, Output, WeightedExtractor
from vqbank.extractors.networks.sizes import MplugOwl2Sizes
from vqbank.extractors.sampling import KeyFrames
from vqbank.extractors.views import CLIP_MEAN, CLIP_STD, normalise, resize_last_axis
from vqbank.extractors.weights import WeightFile, find_weights, locate
from vqbank.store.errors import InvalidFeatureError, RecipeError, WeightsError, in_words

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vqbank.extractors.networks.mplug_owl2 import MplugOwl2, Past

# LLaMA 2's tokens of "How would you rate the quality of this image?", a newline, the picture, a
# space and "ASSISTANT: The quality of the image is", as the slow tokenizer of transformers 4.36
# gives them.  Later tokenizers leave out the space (29871) and so change every number.
PREFIX_IDS = (1, 3148, 1001, 29901, 1128, 723, 366, 6554, 278, 11029, 310, 445, 1967, 29973, 13)
SUFFIX_IDS = (29871, 319, 1799, 9047, 13566, 29901, 450, 11029, 310, 278, 1967, 338)
# What Q-Align's own `score` says behind the picture: a newline in place of the space.
SCORE_SUFFIX_IDS = (29871, 13, 22933, 9047, 13566, 29901, 450, 11029, 310, 278, 1967, 338)
LEVEL_IDS = (15129, 1781, 6534, 6460, 4319)
"""Tokens of excellent, good, fair, poor and bad, which count 5, 4, 3, 2 and 1."""

# Small, but as wide as OneAlign where it ends, so that its rows fit heads.
_TINY = MplugOwl2Sizes(
    vision_width=64,
    vision_inner=128,
    vision_layers=2,
    vision_heads=4,
    abstractor_inner=128,
    abstractor_layers=2,
    abstractor_heads=4,
    inner=64,
    layers=1,
)
_CLASS_RMS_NORM_EPS = 1e-6  # of the official class, where its config.json says nothing
_SIDE = 448
_PADDING = (122, 116, 104)  # int(255 * mean) of CLIP


@dataclass(frozen=True, slots=True)
class PaddedHalves:
    """The upper and the lower half of a frame, each in the middle of a grey square, resized.

    As Pillow resizes, bicubic and antialiased, to the last bit; the upper half of an odd height is
    the smaller one.
    """

    side: int = _SIDE
    frame: bool = field(default=False, compare=False)
    """Whether the whole frame comes third, in a square like theirs; the halves stay what they are,
    so that no key of what is made of them tells it."""

    def __call__(self, frames: Tensor) -> Tensor:
        """[k, 2, 3, side, side], or [k, 3, 3, side, side] with the whole frame.

        Raises:
            InvalidFeatureError: if a frame has less than two rows.
        """
        import torch

        height, width = frames.shape[-2:]
        if height < 2:
            raise InvalidFeatureError(f"frames of {width} x {height} have no halves for qalign")
        parts = [frames[..., : height // 2, :], frames[..., height // 2 :, :]]
        parts += [frames] if self.frame else []
        return torch.stack([self._square(part) for part in parts], dim=1)

    def _square(self, part: Tensor) -> Tensor:
        height, width = part.shape[-2:]
        large = max(height, width)
        if large == self.side:
            return _padded(_padded(part, large, -1), large, -2)
        # Rows of padding stay what they are when their columns are resized, and so come later.
        narrow = resize_last_axis(_padded(part, large, -1), self.side, "bicubic")
        tall = _padded(narrow, large, -2)
        return resize_last_axis(tall.transpose(-1, -2), self.side, "bicubic").transpose(-1, -2)


def _padded(pictures: Tensor, length: int, axis: int) -> Tensor:
    """[k, 3, h, w] in the middle of padding, `length` long along an axis."""
    import torch

    missing = length - pictures.shape[axis]
    if missing == 0:
        return pictures
    shape = list(pictures.shape)
    shape[axis] = length
    colour = torch.tensor(_PADDING, dtype=torch.uint8, device=pictures.device)
    padded = colour.reshape(3, 1, 1).repeat(shape[0], 1, shape[2], shape[3])
    padded.narrow(axis, missing // 2, pictures.shape[axis]).copy_(pictures)
    return padded


@dataclass(frozen=True, kw_only=True)
class QAlign(WeightedExtractor):
    """Hidden states of OneAlign's language model for every key frame, as RQ-VQA takes them.

    Each half of the frame is shown with the prompt; the states after the final norm are averaged
    over both halves and over all 92 positions, those of the text included.  The official code ran
    LLM.int8 with float16, which `quantised="int8"` does too; without it the weights are those of
    the file, kept in `compute_dtype`.  `score` is Q-Align's own of the whole frame, from 1 (bad) to
    5 (excellent), and costs half as much again; the official score of a picture, and of a video the
    mean over its key frames.
    """

    weights: str = "one-align"
    """"one-align", "random", "random-tiny", or the path of a folder of shards like OneAlign's."""
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float16"
    """What everything is computed in and the weights are kept in: 8 billion of them."""
    quantised: Literal["int8", "int4"] | None = None
    """Linear layers by bitsandbytes: LLM.int8 with outliers above 6 apart, or 4-bit NormalFloat."""
    rms_norm_eps: float = 1e-5
    """What the language model's norms add under the root, against a division by 0; a config.json
    beside the weights must say the same."""

    name = "qalign"
    version = 1
    batch_clips = 1
    has_tiny = True
    files = (
        WeightFile(
            choice="one-align",
            url="https://huggingface.co/q-future/one-align",
            save_as="one-align",
            publisher="Q-Future",
            licence="S-Lab (non-commercial) for the code, LLaMA 2 licence for the base",
            trained_on=("KonIQ-10k", "SPAQ", "KADID-10k", "AVA", "LSVQ"),
            sha256="483d8770ff7f355e73ed0c30c5bd8c3eaa008a1317198012bb9838251e56ab94",
            size=16_410_000_000,  # about
        ),
    )

    sampling = KeyFrames()

    def __post_init__(self) -> None:
        """Refuse what bitsandbytes would silently compute otherwise.

        Raises:
            RecipeError: for LLM.int8 in another precision than float16.
        """
        if self.quantised == "int8" and self.compute_dtype != "float16":
            raise RecipeError(
                f"qalign: quantised int8 computes in float16, not in {self.compute_dtype}; set "
                "compute_dtype: float16"
            )

    @property
    def offers(self) -> tuple[Output, ...]:
        """The mean over all positions; on demand every position (mean over the halves), a score."""
        configuration = self.configuration
        width = configuration.width
        positions = len(PREFIX_IDS) + configuration.queries + 1 + len(SUFFIX_IDS)
        return (
            Output("feature", (width,)),
            Output("hidden", (positions, width), usual=False),
            Output("score", (1,), "float32", usual=False, identity=_of_score),
        )

    @property
    def view(self) -> PaddedHalves:
        """The halves, and the whole frame where a score is wanted."""
        return PaddedHalves(frame=any(output.name == "score" for output in self.wanted))

    @property
    def configuration(self) -> MplugOwl2Sizes:
        """Sizes of the network."""
        sizes = _TINY if self.tiny else MplugOwl2Sizes()
        return replace(sizes, rms_norm_eps=self.rms_norm_eps)

    def parameters(self) -> dict[str, Any]:
        """As for every extractor.

        Raises:
            WeightsError: also if the folder's keys are those of another network, before its 16 GB
                are read for their sha256.
        """
        from vqbank.extractors.loading import check_names

        if not self.is_random:
            published = self.weights == self.file.choice
            path = locate(self.file) if published else Path(self.weights).expanduser()
            if path is not None and path.exists():
                check_names(_keys(self.configuration), path)
        return super().parameters()

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Nothing: the weights are in the computing precision."""
        return nullcontext()

    @property
    def modules(self) -> tuple[str, ...]:
        """The network, and bitsandbytes where it is quantised."""
        network = ("vqbank.extractors.networks.mplug_owl2",)
        return (*network, "bitsandbytes.nn") if self.quantised else network

    def build(self, device: torch.device) -> ClipFn:
        """Both halves, or the whole frame, through ViT, abstractor and language model.

        Raises:
            WeightsError: if a shard is missing, unsafe or of another network, or weights are to be
                quantised and bitsandbytes is not there.
        """
        import torch

        network = self._network(device)
        wanted = {output.name for output in self.wanted}
        # LLM.int8 chooses its outliers over all positions of a batch: the frames of a batch may
        # not be mixed, and the official numbers come from whole sequences.
        int8 = self.quantised == "int8"
        past = None if int8 else read_prefix(network)

        def states(pictures: Tensor, suffix: tuple[int, ...] = SUFFIX_IDS) -> Tensor:
            batches = pictures.split(1 if int8 else len(pictures))  # of [b, k, 3, h, w]
            return torch.cat(
                [hidden_states(network, some.flatten(0, 1), past, suffix) for some in batches]
            )

        def average(clips: Tensor) -> Mapping[str, Tensor]:
            pictures = normalise(clips[:, 0], CLIP_MEAN, CLIP_STD)  # [b, 2 or 3, 3, h, w]
            rows: dict[str, Tensor] = {}
            if wanted & {"feature", "hidden"}:
                hidden = states(pictures[:, :2]).float()
                positions = hidden.unflatten(0, (-1, 2)).mean(dim=1)[:, None]  # [b, 1, t, d]
                rows |= {"feature": positions.mean(dim=2), "hidden": positions}
            if "score" in wanted:
                logits = level_logits(network, states(pictures[:, 2:], SCORE_SUFFIX_IDS))
                rows["score"] = scores(logits)[:, None]
            return {name: values for name, values in rows.items() if name in wanted}

        return average

    def _network(self, device: torch.device) -> MplugOwl2:
        import torch

        from vqbank.extractors.loading import random_weights
        from vqbank.extractors.networks.mplug_owl2 import MplugOwl2

        dtype = getattr(torch, self.compute_dtype)
        # Quantised weights alone go to the device: the others may not fit there.
        at_first = torch.device("cpu") if self.quantised else device
        if self.is_random:
            with random_weights():
                network = MplugOwl2(self.configuration).to(at_first, dtype)
        else:
            path = find_weights(self.weights, *self.files, extractor=self.name, has_tiny=True)
            network = load_network(
                path, *self.files, configuration=self.configuration, device=at_first, dtype=dtype
            )
        if self.quantised is not None:
            _quantise(network, self.quantised, device)
        return network.to(device).eval().requires_grad_(False)


def load_network(
    path: Path,
    *files: WeightFile,
    configuration: MplugOwl2Sizes,
    device: torch.device,
    dtype: torch.dtype,
) -> MplugOwl2:
    """The network with the weights of a folder, one tensor at a time.

    There is never more in memory than the network and one tensor of the folder.

    Args:
        path: a folder of shards, or their index, with or without a config.json beside them.
        *files: what is expected there.
        configuration: of the network.
        device: where to.
        dtype: as what.

    Raises:
        WeightsError: if a shard is missing, unsafe or of another network, or config.json has
            another rms_norm_eps.
    """
    import torch

    from vqbank.extractors.loading import check_keys, stream_state_dict
    from vqbank.extractors.networks.mplug_owl2 import MplugOwl2

    folder = path if path.is_dir() else path.parent
    _check_rms_norm_eps(folder / "config.json", configuration.rms_norm_eps)
    with torch.device("meta"):
        network = MplugOwl2(configuration)
    state = {key: tensor.to(device, dtype) for key, tensor in stream_state_dict(path, *files)}
    check_keys(network.state_dict(), state, path)
    network.load_state_dict(state, assign=True)
    return network


@lru_cache(maxsize=1)
def _keys(configuration: MplugOwl2Sizes) -> Set[str]:
    import torch

    from vqbank.extractors.networks.mplug_owl2 import MplugOwl2

    with torch.device("meta"):
        return MplugOwl2(configuration).state_dict().keys()


def _check_rms_norm_eps(path: Path, ours: float) -> None:
    """No shape tells this number of the official config.json."""
    if not path.is_file():
        return
    try:
        theirs = json.loads(path.read_bytes()).get("rms_norm_eps", _CLASS_RMS_NORM_EPS)
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{path} is not the configuration of a model: {in_words(error)}"
        ) from error
    if theirs != ours:
        raise WeightsError(f"{path} has rms_norm_eps {theirs}, not {ours}; set rms_norm_eps")


def _quantise(network: MplugOwl2, kind: Literal["int8", "int4"], device: torch.device) -> None:
    """Replace every linear layer but the head, one at a time, by one of bitsandbytes."""
    from torch import nn

    try:
        from bitsandbytes import nn as quantised
    except ImportError as error:
        raise WeightsError(
            f"qalign: quantised {kind} needs bitsandbytes ({error}): pip install bitsandbytes, or "
            "leave quantised out"
        ) from error
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    for name in linear:
        if name == "lm_head":
            continue
        old = network.get_submodule(name)
        size = (old.in_features, old.out_features, old.bias is not None)
        if kind == "int8":
            new = quantised.Linear8bitLt(*size, has_fp16_weights=False, threshold=6.0)
            new.weight = quantised.Int8Params(
                old.weight.data, requires_grad=False, has_fp16_weights=False
            )
        else:
            new = quantised.LinearNF4(*size, compute_dtype=old.weight.dtype)
            new.weight = quantised.Params4bit(
                old.weight.data, requires_grad=False, quant_type="nf4"
            )
        new.bias = old.bias
        network.set_submodule(name, new.to(device))


def read_prefix(network: MplugOwl2) -> Past:
    """What the language model makes of the prompt before the picture, the same for all pictures."""
    import torch

    from vqbank.extractors.networks.mplug_owl2 import TEXT

    with torch.no_grad():
        return network.decode(network.read(PREFIX_IDS), [(TEXT, len(PREFIX_IDS))])


def hidden_states(
    network: MplugOwl2,
    pictures: Tensor,
    past: Past | None = None,
    suffix_ids: tuple[int, ...] = SUFFIX_IDS,
) -> Tensor:
    """States of the whole prompt after the final norm.

    Args:
        network: with the weights.
        pictures: [n, 3, h, w], normalised.
        past: of `read_prefix`; None reads the whole prompt at once, which gives the same numbers
            within rounding and costs a sixth more.
        suffix_ids: the prompt behind the picture.

    Returns:
        [n, 92, d]: 15 tokens, 64 queries and the end of the picture, 12 tokens.
    """
    import torch

    from vqbank.extractors.networks.mplug_owl2 import IMAGE, TEXT

    seen = network.see(pictures.to(network.lm_head.weight.dtype))
    prefix, suffix = network.read(PREFIX_IDS), network.read(suffix_ids)
    parts = [part.expand(len(seen), -1, -1) for part in (prefix, seen, suffix)]
    segments = [(TEXT, len(PREFIX_IDS)), (IMAGE, seen.shape[1]), (TEXT, len(suffix_ids))]
    if past is None:
        return network.decode(torch.cat(parts, dim=1), segments).hidden
    hidden = network.decode(torch.cat(parts[1:], dim=1), segments[1:], past).hidden
    return torch.cat([past.hidden.expand(len(seen), -1, -1), hidden], dim=1)


def level_logits(network: MplugOwl2, hidden: Tensor) -> Tensor:
    """[n, 5]: which level the language model would name after states [n, t, d]."""
    return network.lm_head(hidden[:, -1])[:, LEVEL_IDS]


def scores(logits: Tensor) -> Tensor:
    """Official scores [n, 1] of logits [n, 5]: the expected level, in float32.

    As `score` of the published model's modeling_mplug_owl2.py (hub, q-future/one-align).
    """
    import torch

    values = torch.arange(5.0, 0.0, -1.0, device=logits.device)
    return (logits.float().softmax(dim=-1) @ values)[:, None]


def _of_score() -> Mapping[str, Any]:
    """What a score depends on and the other outputs do not."""
    return {"scored": "whole frame", "prompt": [*PREFIX_IDS, *SCORE_SUFFIX_IDS]}
