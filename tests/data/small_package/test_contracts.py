"""The contracts of vqbank, for what this package adds."""

import pytest
from vqbank_brightness.bayes import Bayes
from vqbank_brightness.brightness import Brightness
from vqbank_brightness.convolution import Convolution

from vqbank.testing import ExtractorContract, HeadContract


class TestBrightness(ExtractorContract):
    """Every second frame's colours."""

    @pytest.fixture(scope="class")
    @classmethod
    def extractor(cls):
        return Brightness()


class TestBayes(HeadContract):
    """As it is, since it is quick."""

    @pytest.fixture
    def head(self):
        return Bayes()


class TestConvolution(HeadContract):
    """Narrow, and for few epochs."""

    @pytest.fixture
    def head(self):
        return Convolution(width=4, epochs=8)
