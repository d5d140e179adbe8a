"""What the four stages of torchvision's ResNets say of a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqbank.extractors.loading import check_keys
from vqbank.store.errors import InvalidFeatureError


def fill_resnet(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Fill a network that has batch normalisation with the state dict of a file.

    Files of before PyTorch 1.0, such as resnet50-19c8e357.pth, lack the counters of batches, which
    nothing reads.

    Args:
        network: changed in place.
        state: half precision becomes the network's float32.
        path: the file, for messages.

    Raises:
        WeightsError: names keys that are missing, unexpected or of another shape.
    """
    expected = network.state_dict()
    counters = {key: n for key, n in expected.items() if key.endswith("num_batches_tracked")}
    check_keys(expected, {**counters, **state}, path)
    network.load_state_dict({**counters, **state})


def stages(resnet: Any, pixels: Tensor) -> list[Tensor]:
    """Normalised pictures [b, 3, h, w] to four maps [b, d, h, w], at strides 4, 8, 16 and 32.

    Args:
        resnet: of torchvision.
        pixels: of the pictures.
    """
    maps = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(pixels))))
    found = []
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        maps = stage(maps)
        found.append(maps)
    return found


def spatial_statistics(maps: Tensor) -> Tensor:
    """[b, d, h, w] to [b, 2 d]: the means over space, then the unbiased standard deviations.

    `global_std_pool2d` and its neighbour in VSFA's `CNNfeatures.py`.

    Raises:
        InvalidFeatureError: if a map has one value only, which does not deviate.
    """
    values = maps.flatten(2)
    if values.shape[2] == 1:
        raise InvalidFeatureError(
            "frames of at most 32 x 32 are too small: one value has no standard deviation"
        )
    return torch.cat([values.mean(dim=2), values.std(dim=2)], dim=1)
