"""UNIQUE's ResNet-34 (Zhang et al., IEEE TIP 2021) with its head."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, ResNet

BLOCKS = (3, 4, 6, 3)
"""How many blocks each of ResNet-34's stages has."""


class Unique(nn.Module):
    """UNIQUE's network under its official keys: `BaseCNN` with `BCNN` of zwx8981/UNIQUE."""

    def __init__(self, blocks: tuple[int, ...] = BLOCKS) -> None:
        super().__init__()
        self.backbone = ResNet(BasicBlock, list(blocks))
        self.fc = nn.Linear(512 * 512, 2)

    def score(self, maps: Tensor) -> Tensor:
        """The last stage [b, 512, h, w] to mean and variance of the quality [b, 2]."""
        values = maps.flatten(2)
        bilinear = values @ values.transpose(1, 2) / values.shape[2]
        signed_root = bilinear.sign() * (bilinear.abs() + 1e-8).sqrt()
        mean, spread = self.fc(functional.normalize(signed_root.flatten(1))).unbind(dim=1)
        return torch.stack([mean, functional.softplus(spread)], dim=1)
