"""What lies beside features in a bank, once for all videos: text banks and tails."""

from collections.abc import Mapping
from typing import Any

import torch

from vqbank.extractors.base import Extractor
from vqbank.pipelines.extraction.threads import Threads
from vqbank.pipelines.extraction.wanted import Wanted
from vqbank.store.bank import FeatureStore
from vqbank.store.schema import FeatureSpec
from vqbank.store.tail import has_tail, write_tail
from vqbank.store.text import has_text, write_text


class Companions:
    """The text banks and tails that go with what is wanted."""

    def __init__(self, wanted: Wanted, store: FeatureStore, device: torch.device) -> None:
        """Nothing is looked at yet."""
        self._wanted = wanted
        self._store = store
        self._device = device

    @property
    def are_there(self) -> bool:
        """Whether the bank has all of them."""
        return not any(
            self._missing_text(extractor) or self._missing_tails(extractor)
            for extractor in self._wanted.by_extractor
        )

    async def write(
        self, extractor: Extractor, threads: Threads, provenance: Mapping[str, Any]
    ) -> None:
        """See to it that the bank has what goes with an extractor's features.

        Raises:
            BankError: if the bank cannot be written.
            WeightsError: if the weights are not at hand.
        """
        if text := self._missing_text(extractor):
            made = await threads(extractor.text, self._device)
            write_text(self._store, text, made, provenance=provenance)
        for output, cut in self._missing_tails(extractor).items():
            write_tail(self._store, cut, await threads(extractor.tail, output))

    def _missing_text(self, extractor: Extractor) -> FeatureSpec | None:
        text = extractor.text_spec()
        return None if text is None or has_text(self._store, text) else text

    def _missing_tails(self, extractor: Extractor) -> dict[str, FeatureSpec]:
        """By output, the features whose rows a tail goes on from, if it is not there."""
        wanted = self._wanted.by_extractor[extractor]
        return {
            output: wanted[output]
            for output in extractor.cut_outputs
            if output in wanted
            and not has_tail(
                self._store, wanted[output], extractor.tail_prompts, extractor.tail_towers
            )
        }
