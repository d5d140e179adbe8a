"""What an extractor is: a frozen dataclass of everything that changes its numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from numpy.typing import NDArray

from vqbank.extractors.sampling import Clips, MotionSampling, Sampling, Timeline
from vqbank.extractors.views import ClipView, View
from vqbank.extractors.weights import (
    RANDOM,
    TINY,
    WeightFile,
    find_weights,
    weights_identity,
    weights_origin,
)
from vqbank.store.errors import UnknownNameError, WeightsError, unknown_name
from vqbank.store.schema import FeatureSpec, SideSpec, StoredDtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from vqbank.store.tail import Tail
    from vqbank.store.text import TextBank

Network = TypeVar("Network", bound="nn.Module")

RGB = "swscale bicubic"
"""How decoded pictures become RGB, as every key says: what `video` does, whose `SCALER_FLAGS` a
test holds against this.  Keys of earlier versions lack it: bilinear, each field of
interlaced video by itself, and pictures that VP9 and AV1 never show counted as frames."""

ClipFn = Callable[["Tensor"], Mapping[str, "Tensor"]]
"""uint8 clips [b, f, *view's shape] to rows [b, r, *shape] by output name, of all that is wanted.

Clip i's rows depend on clip i alone, and r is what the sampling promises."""


IMPLIED: Mapping[str, bool] = {"implied": True}
"""Metadata of a field of an extractor, as in `field(default=8, metadata=IMPLIED)`, whose value
stands in the key already: in the sampling, in the view, or in the identity of one output."""


@dataclass(frozen=True, slots=True)
class Output:
    """One named result; several outputs of an extractor share one forward."""

    name: str
    shape: tuple[int, ...]
    """Axes of one row."""
    stored_dtype: StoredDtype = "float16"
    """How rows are stored unless the extractor's own `stored_dtype` says otherwise."""
    side: tuple[SideSpec, ...] = ()
    """Further arrays with one entry per row, from `Extractor.side`."""
    usual: bool = True
    """Whether it is banked where nothing is said; the others are asked for by name."""
    identity: Callable[[], Mapping[str, Any]] = field(default=dict, compare=False)
    """What the numbers of this output alone depend on, as JSON values for its key: the block of a
    cut, the weights of a second file.  Called for outputs that are wanted, and may raise
    WeightsError."""


@dataclass(frozen=True, kw_only=True)
class Extractor(ABC):
    """What to compute.  Device, batch size and worker count are not in it."""

    outputs: tuple[str, ...] = field(default=(), compare=False)
    """Which outputs to bank, by name; empty means the usual ones.  Changes no number, so that it
    is not part of a key."""
    stored_dtype: Literal["float16", "float32", "bfloat16"] | None = None
    """How rows are stored; None means as the outputs say."""

    name: ClassVar[str]
    """What recipes call it, as in EXTRACTORS."""
    version: ClassVar[int]
    """Raised whenever the code changes its numbers."""
    batch_clips: ClassVar[int] = 8
    """Clips in a batch on a CPU: always this many, the last batch is padded."""
    working_bytes_per_pixel: ClassVar[int] = 0
    """Memory that a CPU needs beside the clip for each pixel of a frame, where frames have their
    own size: large ones are computed in turn."""

    @property
    @abstractmethod
    def offers(self) -> tuple[Output, ...]:
        """Every output that can be asked for."""

    @property
    @abstractmethod
    def sampling(self) -> Sampling | MotionSampling:
        """The rule by which frames are chosen."""

    @property
    @abstractmethod
    def view(self) -> View | ClipView:
        """What happens to each frame before it waits for its clip."""

    @abstractmethod
    def build(self, device: torch.device) -> ClipFn:
        """Load the weights and return the function; the only method that touches weights."""

    @property
    def modules(self) -> tuple[str, ...]:
        """What the view and the network import when they are first used.

        Threads that import at once see half a module: whoever calls them from a thread has the
        main thread import these first, as `vqbank.pipelines.extraction.extract.import_for` does.
        """
        return ()

    @property
    def wanted(self) -> tuple[Output, ...]:
        """The outputs that are banked.

        Raises:
            UnknownNameError: if one is asked for that is not offered.
        """
        offers = {output.name: output for output in self.offers}
        for name in self.outputs:
            if name not in offers:
                raise UnknownNameError(unknown_name(f"output of {self.name}", name, offers))
        return tuple(
            output
            for output in offers.values()
            if (output.name in self.outputs if self.outputs else output.usual)
        )

    def side(self, timeline: Timeline, clips: Clips) -> Mapping[str, NDArray[Any]]:
        """Further arrays [t, r, *shape] by the names in `Output.side`; arithmetic, no pixels."""
        return {}

    def text_spec(self) -> FeatureSpec | None:
        """The identity of the text bank that goes with the features; None where there is none."""
        return None

    def text(self, device: torch.device) -> TextBank:
        """The prompts through the text tower, for extractors with a `text_spec`."""
        raise NotImplementedError(f"extractor {self.name} has no prompts")

    @property
    def cut_outputs(self) -> tuple[str, ...]:
        """Outputs whose rows are states that a tail goes on from."""
        return ()

    @property
    def tail_prompts(self) -> tuple[str, ...]:
        """The prompts whose tokens the tail keeps."""
        return ()

    @property
    def tail_towers(self) -> tuple[str, ...]:
        """Towers of the tail that are there only where they are asked for."""
        return ()

    def tail(self, output: str) -> Tail:
        """What continues the states of one of `cut_outputs`.

        Raises:
            WeightsError: if the weights are not at hand.
        """
        raise NotImplementedError(f"extractor {self.name} has no cut")

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context in which the function of `build` has to be called."""
        return nullcontext()

    def parameters(self) -> dict[str, Any]:
        """Everything of this instance that changes the numbers, as JSON values.

        Without fields that are IMPLIED, and without the stored dtype, which stands in the
        FeatureSpec itself.
        """
        return {
            field.name: describe(getattr(self, field.name))
            for field in fields(self)
            if field.compare and "implied" not in field.metadata and field.name != "stored_dtype"
        }

    def described_view(self) -> Any:
        """The view, as keys say it."""
        return describe(self.view)

    def origin(self) -> Mapping[str, Any]:
        """Publisher, licence and training data of the weights, as a FeatureSpec takes them."""
        return {}

    def specs(self, *, decoder: str, motion: str = "") -> dict[str, FeatureSpec]:
        """The identity of each output by its name.  No model is loaded.

        Args:
            decoder: a name of `video.DECODERS`.
            motion: the key of the series that its sampling reads, if it reads one.

        Raises:
            UnknownNameError: if an output is asked for that is not offered.
            WeightsError: if the weights are not at hand.
        """
        identity = {
            "extractor": self.name,
            "version": self.version,
            "decoder": decoder,
            "rgb": RGB,
            "sampling": describe(self.sampling),
            "view": self.described_view(),
            **({"motion": motion} if motion else {}),
            **self.parameters(),
        }
        origin = self.origin()
        return {
            output.name: FeatureSpec(
                name=f"{self.name}.{output.name}",
                shape=output.shape,
                stored_dtype=self.stored_dtype or output.stored_dtype,
                identity={**identity, **output.identity()},
                side=output.side,
                **origin,
            )
            for output in self.wanted
        }


@dataclass(frozen=True, kw_only=True)
class WeightedExtractor(Extractor):
    """An extractor with published weights to choose from."""

    weights: str
    """The choice of one of `files`, "random", the path of a local file or folder of shards, or,
    where there is a tiny configuration, "random-tiny"."""
    compute_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What matrix products and convolutions are computed in; the weights stay in float32."""

    has_tiny: ClassVar[bool] = False
    """Whether there is a tiny configuration of the network."""

    @property
    def tiny(self) -> bool:
        """Whether the tiny configuration is asked for.

        Raises:
            WeightsError: if there is none.
        """
        if self.weights == TINY and not self.has_tiny:
            raise WeightsError(f"extractor {self.name} has no tiny configuration; take {RANDOM!r}")
        return self.weights == TINY

    @property
    def is_random(self) -> bool:
        """Whether weights are asked for that nobody trained, so that no file is read.

        Raises:
            WeightsError: as `tiny`.
        """
        return self.weights == RANDOM or self.tiny

    @property
    @abstractmethod
    def files(self) -> tuple[WeightFile, ...]:
        """The published files; a local one may be in the container of any of them."""

    @property
    def file(self) -> WeightFile:
        """The published file that is meant; the first where a local one is."""
        return next((file for file in self.files if file.choice == self.weights), self.files[0])

    @property
    def _candidates(self) -> tuple[WeightFile, ...]:
        """What may be meant, the likeliest first: a subclass may know of more than it lists."""
        return tuple(dict.fromkeys((self.file, *self.files)))

    def precision(self, device: torch.device) -> AbstractContextManager[Any]:
        """Automatic mixed precision, unless float32 is asked for."""
        import torch

        if self.compute_dtype == "float32":
            return nullcontext()
        return torch.autocast(device.type, getattr(torch, self.compute_dtype))

    def parameters(self) -> dict[str, Any]:
        """As for every extractor, with the weights' sha256, or "random", in place of their path."""
        if self.tiny:
            return {**super().parameters(), "weights": TINY}
        identity = weights_identity(
            self.weights, *self._candidates, extractor=self.name, has_tiny=self.has_tiny
        )
        return {**super().parameters(), "weights": identity}

    def origin(self) -> Mapping[str, Any]:
        """Publisher, licence and training data of the published file.

        A local file is not taken for one unless its sha256 says so.
        """
        return weights_origin(self.weights, *self._candidates, extractor=self.name)

    def network(
        self,
        architecture: Callable[[], Network],
        *,
        renamed: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    ) -> Network:
        """The network on the CPU, filled with the weights; half precision becomes float32.

        Args:
            architecture: makes the network, with PyTorch's random start.
            renamed: the file's state dict under the keys of the network, less what the network
                does not have.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        import torch

        from vqbank.extractors.loading import check_keys, random_weights, stream_state_dict

        if self.is_random:
            with random_weights():
                return architecture()
        path = find_weights(
            self.weights, *self._candidates, extractor=self.name, has_tiny=self.has_tiny
        )
        # A published file is what its entry says; a local one may be any of them.
        expected = (self.file,) if self.file.choice == self.weights else self._candidates
        state = renamed(
            {
                key: value.float() if value.is_floating_point() else value
                for key, value in stream_state_dict(path, *expected)
            }
        )
        with torch.device("meta"):
            network = architecture()
        check_keys(network.state_dict(), state, path)
        network.load_state_dict(state, assign=True)
        return network


def describe(value: Any) -> Any:
    """A dataclass as JSON values, its class named under "kind"; all else as it is.

    Fields that do not take part in comparison change no numbers and are left out.
    """
    if is_dataclass(value):
        compared = (field.name for field in fields(value) if field.compare)
        described = {name: describe(getattr(value, name)) for name in compared}
        return {"kind": type(value).__name__, **described}
    if isinstance(value, tuple):
        return [describe(item) for item in value]
    return value
