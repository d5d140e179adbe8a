"""What an extractor is: a frozen dataclass of everything that changes its numbers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from extractors.sampling import Sampling
from extractors.views import View
from store.schema import FeatureSpec, StoredDtype

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
    publisher: ClassVar[str] = ""
    """Of the weights, like the next two."""
    licence: ClassVar[str] = ""
    trained_on: ClassVar[tuple[str, ...]] = ()

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

        An extractor with weights replaces their path by their sha256, or "random".  The stored
        dtype stands in the FeatureSpec itself.
        """
        parameters = {field.name: describe(getattr(self, field.name)) for field in fields(self)}
        del parameters["stored_dtype"]
        return parameters

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
        trained = identity.get("weights") != "random"
        return {
            output.name: FeatureSpec(
                name=f"{self.name}.{output.name}",
                shape=output.shape,
                stored_dtype=self.stored_dtype or output.stored_dtype,
                identity=identity,
                publisher=self.publisher if trained else "",
                licence=self.licence if trained else "",
                trained_on=self.trained_on if trained else (),
            )
            for output in self.outputs
        }


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
