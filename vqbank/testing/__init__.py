"""The tests that every extractor and every head of vqbank passes, for those of other packages.

A package that adds an extractor or a head by an entry point subclasses the contract in a test file
of its own and says what it tests; pytest collects the rest:

    from vqbank.testing import ExtractorContract, HeadContract

    class TestBrightness(ExtractorContract):
        @pytest.fixture(scope="class")
        @classmethod
        def extractor(cls):
            return Brightness()

    class TestBayes(HeadContract):
        @pytest.fixture
        def head(self):
            return Bayes()

The contracts need pytest, which vqbank itself does not ask for.
"""

import pytest

pytest.register_assert_rewrite("vqbank.testing.extractors", "vqbank.testing.heads")

from vqbank.testing.extractors import ExtractorContract  # noqa: E402  # asserts are rewritten first
from vqbank.testing.heads import HeadContract  # noqa: E402

__all__ = ["ExtractorContract", "HeadContract"]
