"""No-reference image quality metrics of pyiqa, on key frames."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from vqbank.extractors.base import ClipFn, Extractor, Output, WeightedExtractor
from vqbank.extractors.sampling import KeyFrames
from vqbank.extractors.views import Native
from vqbank.extractors.weights import (
    RANDOM,
    WeightFile,
    find_weights,
    weights_identity,
    weights_origin,
)
from vqbank.store.errors import (
    InvalidFeatureError,
    RecipeError,
    UnknownNameError,
    WeightsError,
    unknown_name,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_PUBLISHED = "published"


@dataclass(frozen=True, slots=True)
class _Metric:
    """How pyiqa builds one metric without a download."""

    module: str
    """Name of the module in `pyiqa.archs`."""
    kind: str
    """Name of the class in that module."""
    file: str = ""
    """Name of the published file of weights; empty where there is none."""
    trained_on: tuple[str, ...] = ()
    entry: str | None = None
    """The entry of the file that holds the state dict; None where the file is one."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the constructor, beside those that pyiqa has for the metric."""
    is_network: bool = True
    """Whether the file is a state dict; else pyiqa's constructor reads it."""
    shortest_side: int = 16


_network = partial(_Metric, options={"pretrained": False})
_fitted = partial(_Metric, is_network=False)
_musiq = partial(_network, "musiq_arch", "MUSIQ")
_topiq = partial(
    _network,
    "topiq_arch",
    "CFANet",
    entry="params",
    options={"pretrained": False, "backbone_pretrain": False},
)
_niqe = partial(_fitted, "niqe_arch", "NIQE", shortest_side=96)  # of a block
_METRICS: dict[str, _Metric] = {
    "brisque": _fitted("brisque_arch", "BRISQUE", "brisque_svm_weights.pth", ("LIVE",)),
    "cnniqa": _network(
        "cnniqa_arch",
        "CNNIQA",
        "CNNIQA_koniq10k-e6f14c91.pth",
        ("KonIQ-10k",),
        "params",
        options={"pretrained": None},
    ),
    "entropy": _fitted("entropy_arch", "Entropy"),
    "ilniqe": _fitted("niqe_arch", "ILNIQE", "ILNIQE_templateModel.mat"),
    "musiq": _musiq("musiq_koniq_ckpt-e95806b9.pth", ("ImageNet-1k", "KonIQ-10k")),
    "musiq-ava": _musiq(
        "musiq_ava_ckpt-e8d3f067.pth",
        ("ImageNet-1k", "AVA"),
        options={"pretrained": False, "num_class": 10},
    ),
    "musiq-paq2piq": _musiq("musiq_paq2piq_ckpt-364c0c84.pth", ("ImageNet-1k", "FLIVE")),
    "musiq-spaq": _musiq("musiq_spaq_ckpt-358bb6af.pth", ("ImageNet-1k", "SPAQ")),
    "niqe": _niqe("niqe_modelparameters.mat"),
    "niqe_matlab": _niqe("niqe_matlab_params.mat"),
    "piqe": _fitted("piqe_arch", "PIQE"),
    "topiq_iaa_res50": _topiq("cfanet_iaa_ava_res50-3cd62bb3.pth", ("ImageNet-1k", "AVA")),
    "topiq_nr": _topiq("cfanet_nr_koniq_res50-9a73138b.pth", ("ImageNet-1k", "KonIQ-10k")),
    "topiq_nr-flive": _topiq("cfanet_nr_flive_res50-ded1c74e.pth", ("ImageNet-1k", "FLIVE")),
    "topiq_nr-spaq": _topiq("cfanet_nr_spaq_res50-a7f799ac.pth", ("ImageNet-1k", "SPAQ")),
    "wadiqam_nr": _network(
        "wadiqam_arch",
        "WaDIQaM",
        "WaDIQaM-NR-koniq-aaffea29.pth",
        ("KonIQ-10k",),
        "params",
        shortest_side=33,
    ),
}
# What pyiqa and SciPy raise for a file that is something else, found by trying.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, NotImplementedError)


@dataclass(frozen=True, kw_only=True)
class Iqa(WeightedExtractor):
    """The score that a metric of pyiqa gives to every key frame, at the frame's own size.

    Offered are metrics that can be built from a weight file at hand, or need none: brisque, cnniqa,
    entropy, ilniqe, musiq, musiq-ava, musiq-paq2piq, musiq-spaq, niqe, niqe_matlab, piqe,
    topiq_iaa_res50, topiq_nr, topiq_nr-flive, topiq_nr-spaq, wadiqam_nr.  pyiqa's others download
    weights while they are built.  Frames without any texture, on which brisque, niqe and piqe are
    not defined, give no number, and a video that has one is refused.
    """

    metric: str = "musiq"
    """Name of the metric in pyiqa."""
    weights: str = _PUBLISHED
    """"published", "random" (networks only), or the path of a file like the published one."""

    name = "iqa"
    version = 1
    batch_clips = 1
    files = tuple(
        WeightFile(
            choice=name,
            url=f"https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/{metric.file}",
            save_as=metric.file,
            publisher="pyiqa",
            licence="PolyForm-Noncommercial-1.0.0",
            trained_on=metric.trained_on,
            entry=metric.entry,
        )
        for name, metric in _METRICS.items()
        if metric.file
    )

    sampling = KeyFrames()
    view = Native()

    def __post_init__(self) -> None:
        if self.metric not in _METRICS:
            raise UnknownNameError(
                f"{unknown_name('metric of iqa', self.metric, _METRICS)} pyiqa's others download "
                "weights while they are built."
            )
        if not self._built.file and self.weights != _PUBLISHED:
            raise RecipeError(f"iqa: metric {self.metric} has no weights, not {self.weights!r}")
        if not self._built.is_network and self.weights == RANDOM:
            raise RecipeError(f"iqa: metric {self.metric} is no network; it has no random weights")

    @property
    def _built(self) -> _Metric:
        return _METRICS[self.metric]

    @property
    def _choice(self) -> str:
        return self.metric if self.weights == _PUBLISHED else self.weights

    @property
    def file(self) -> WeightFile:
        """The published file of the metric."""
        return next(file for file in self.files if file.choice == self.metric)

    @property
    def offers(self) -> tuple[Output, ...]:
        """One column, called as the metric."""
        return (Output(self.metric, (1,), "float32"),)

    def parameters(self) -> dict[str, Any]:
        """As for every extractor with weights, with pyiqa's version and options.

        "none" stands for the weights of a metric without any.
        """
        assert not self.tiny  # raises: there is none
        identity = "none"
        if self._built.file:
            identity = weights_identity(self._choice, self.file, extractor=self.name)
        return {
            **Extractor.parameters(self),
            "weights": identity,
            "options": self._options,
            "pyiqa": version("pyiqa"),
        }

    def origin(self) -> Mapping[str, Any]:
        """Publisher, licence and training data of the published file, if there is one."""
        if not self._built.file:
            return {}
        return weights_origin(self._choice, self.file, extractor=self.name)

    @property
    def modules(self) -> tuple[str, ...]:
        """pyiqa's file of the metric."""
        return (
            "pyiqa.default_model_configs",
            f"pyiqa.archs.{self._built.module}",
            "scipy.io.matlab",
        )

    def build(self, device: torch.device) -> ClipFn:
        """pyiqa's module.

        The function raises InvalidFeatureError for frames that are too small for the metric.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        import torch
        from torch.linalg import LinAlgError  # type: ignore[attr-defined]

        module = self._module().to(device).eval().requires_grad_(False)
        shortest = self._built.shortest_side

        def score(frame: Tensor) -> Tensor:
            height, width = frame.shape[-2:]
            if min(height, width) < shortest:
                raise InvalidFeatureError(
                    f"frames of {width} x {height} are too small for {self.metric}, which needs "
                    f"{shortest} x {shortest}"
                )
            try:
                with warnings.catch_warnings():  # niqe, of a frame without texture
                    warnings.filterwarnings("ignore", "cov.*: degrees of freedom")
                    return module(frame[None].contiguous() / 255).reshape(1, 1).float()
            except (AssertionError, LinAlgError):
                # Only brisque and niqe, of such a frame: not finite, so refused.
                return torch.full((1, 1), torch.nan, device=device)

        def scores(clips: Tensor) -> Mapping[str, Tensor]:
            # One frame at a time, so that a frame's company changes no bit.
            return {self.metric: torch.stack([score(clip[0]) for clip in clips])}

        return scores

    @property
    def _options(self) -> dict[str, Any]:
        """What the class is made with."""
        from pyiqa.default_model_configs import DEFAULT_CONFIGS

        options = {**DEFAULT_CONFIGS[self.metric]["metric_opts"], **self._built.options}
        del options["type"]
        return options

    def _module(self) -> nn.Module:
        from vqbank.extractors.loading import (
            check_keys,
            load_pickled,
            load_state_dict,
            random_weights,
        )

        built = self._built
        kind = getattr(import_module(f"pyiqa.archs.{built.module}"), built.kind)
        options = self._options
        if not built.file:
            return kind(**options)
        if self.weights == RANDOM:
            with random_weights():
                return kind(**options)
        path = find_weights(self._choice, self.file, extractor=self.name)
        if built.is_network:
            with random_weights():
                network = kind(**options)
            state = {
                key.removeprefix("module."): value  # of training on several GPUs
                for key, value in load_state_dict(path, self.file).items()
            }
            check_keys(network.state_dict(), state, path)
            network.load_state_dict(state)
            return network
        if not built.file.endswith(".mat"):  # those are data alone
            # pyiqa loads without looking.
            load_pickled(path, f"take {self.file.url}")
        from scipy.io.matlab import MatReadError

        try:
            return kind(**options, pretrained_model_path=str(path))
        except (*_UNREADABLE, MatReadError) as error:
            raise WeightsError(
                f"{path} cannot be read as {self.file.save_as} ({type(error).__name__}: {error}); "
                f"take {self.file.url}"
            ) from error
