"""What an extractor is: a frozen dataclass of everything that changes its numbers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from extractors.sampling import Sampling
from extractors.views import View
from extractors.weights import (
    RANDOM,
    WeightFile,
    check_keys,
    find_weights,
    load_state_dict,
    random_weights,
    weights_identity,
    weights_origin,
)
from store.schema import FeatureSpec, StoredDtype

Network = TypeVar("Network", bound=nn.Module)

ClipFn = Callable[[Tensor], Mapping[str, Tensor]]
"""uint8 clips [b, f, 3, h, w] (after the view) to rows [b, r, *shape] by output name.

Clip i's rows depend on clip i alone, and r is what the sampling promises."""


@dataclass(frozen=True, slots=True)
class Output:
    """One named result; several outputs of an extractor share one forward."""

    name: str
    shape: tuple[int, ...]
    """Of one row."""
    stored_dtype: StoredDtype = "float16"


@dataclass(frozen=True, kw_only=True)
class Extractor(ABC):
    """What to compute.  Device, batch size and worker count are not in it."""

    stored_dtype: Literal["float16", "float32", "bfloat16"] | None = None
    """How rows are stored; None means as the outputs say."""

    name: ClassVar[str]
    """As in EXTRACTORS."""
    version: ClassVar[int]
    """Raised whenever the code changes its numbers."""
    outputs: ClassVar[tuple[Output, ...]]
    batch_clips: ClassVar[int] = 8
    """Clips in a batch on a CPU: always this many, the last batch is padded."""

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """Which frames."""

    @property
    @abstractmethod
    def view(self) -> View:
        """What happens to each frame before it waits for its clip."""

    @abstractmethod
    def build(self, device: torch.device) -> ClipFn:
        """Load the weights and return the function; the only method that touches weights."""

    def parameters(self) -> dict[str, Any]:
        """Everything of this instance that changes the numbers, as JSON values.

        The stored dtype stands in the FeatureSpec itself.
        """
        parameters = {field.name: describe(getattr(self, field.name)) for field in fields(self)}
        del parameters["stored_dtype"]
        return parameters

    def origin(self) -> Mapping[str, Any]:
        """Publisher, licence and training data of the weights, as a FeatureSpec takes them."""
        return {}

    def specs(self, *, decoder: str) -> dict[str, FeatureSpec]:
        """The identity of each output by its name.  No model is loaded.

        Raises:
            WeightsError: if the weights are not at hand.
        """
        identity = {
            "extractor": self.name,
            "version": self.version,
            "decoder": decoder,
            "sampling": describe(self.sampling),
            "view": describe(self.view),
            **self.parameters(),
        }
        origin = self.origin()
        return {
            output.name: FeatureSpec(
                name=f"{self.name}.{output.name}",
                shape=output.shape,
                stored_dtype=self.stored_dtype or output.stored_dtype,
                identity=identity,
                **origin,
            )
            for output in self.outputs
        }


@dataclass(frozen=True, kw_only=True)
class WeightedExtractor(Extractor):
    """An extractor with one published weight file."""

    weights: str
    """`file.choice`, "random", or the path of a local file."""

    file: ClassVar[WeightFile]

    def parameters(self) -> dict[str, Any]:
        """As for every extractor, with the weights' sha256, or "random", in place of their path."""
        identity = weights_identity(self.weights, self.file, extractor=self.name)
        return {**super().parameters(), "weights": identity}

    def origin(self) -> Mapping[str, Any]:
        """Of the published file; a local file is not taken for it."""
        return weights_origin(self.weights, self.file, extractor=self.name)

    def network(
        self, architecture: Callable[[], Network], *, ignored: Collection[str] = ()
    ) -> Network:
        """The network on the CPU, filled with the weights; half precision becomes float32.

        Args:
            architecture: makes the network, with PyTorch's random start.
            ignored: keys that the file may have beside those of the network.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        if self.weights == RANDOM:
            with random_weights():
                return architecture()
        path = find_weights(self.weights, self.file, extractor=self.name)
        state = {
            key: value.float() if value.is_floating_point() else value
            for key, value in load_state_dict(path, self.file).items()
            if key not in ignored
        }
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
