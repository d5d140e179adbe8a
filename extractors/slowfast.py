"""SlowFast R50: the fast pathway's motion feature of a clip per second."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from extractors.base import ClipFn, Output, WeightedExtractor
from extractors.sampling import ClipPerSecond
from extractors.views import Squash, normalise
from extractors.weights import WeightFile

# PyTorchVideo's own, for every channel.
_MEAN = (0.45, 0.45, 0.45)
_STD = (0.225, 0.225, 0.225)
_STAGES = 5  # blocks after these pool and classify


@dataclass(frozen=True, kw_only=True)
class SlowFast(WeightedExtractor):
    """The fast pathway of slowfast_r50, averaged over time and space, in float32.

    As RQ-VQA and MinimalisticVQA use it: 32 consecutive frames from the start of every second,
    squashed to 224 x 224, (x / 255 - 0.45) / 0.225.  Lateral connections run from fast to slow
    only, so the slow pathway, which costs nine times as much, changes nothing here and is not run.
    """

    weights: str = "kinetics400"
    """"kinetics400", "random", or the path of a file like SLOWFAST_8x8_R50.pyth, with both
    pathways."""

    name = "slowfast"
    version = 1
    offers = (Output("fast", (256,)),)
    batch_clips = 2
    files = (
        WeightFile(
            choice="kinetics400",
            url="https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/SLOWFAST_8x8_R50.pyth",
            save_as="SLOWFAST_8x8_R50.pyth",
            publisher="Meta AI, PyTorchVideo model zoo",
            licence="Apache-2.0",
            trained_on=("Kinetics-400",),
            entry="model_state",
        ),
    )

    sampling = ClipPerSecond(32)
    view = Squash(224, 224, "bilinear")

    def build(self, device: torch.device) -> ClipFn:
        """The fast pathway.

        Raises:
            WeightsError: if the file is missing, unsafe or of another network.
        """
        with warnings.catch_warnings():
            # fvcore, which it imports, still calls torch.jit.script.
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
            from pytorchvideo.models.hub import slowfast_r50
        stages = list(self.network(slowfast_r50).blocks)[:_STAGES]
        pathway = torch.nn.Sequential(*[stage.multipathway_blocks[1] for stage in stages])
        pathway = pathway.to(device).eval().requires_grad_(False)

        def average(clips: Tensor) -> Mapping[str, Tensor]:
            channels_first = normalise(clips, _MEAN, _STD).transpose(1, 2)  # [b, 3, f, h, w]
            return {"fast": pathway(channels_first).mean(dim=(2, 3, 4))[:, None]}

        return average
