"""RQ-VQA's spatial branch: Swin-B and three attention blocks on it."""

from torch import Tensor, nn

from vqbank.extractors.networks.bottleneck_transformer import BottleneckStack

DEPTHS = (2, 2, 18, 2)
"""How many blocks each of Swin-B's stages has."""
BLOCKS = 3
"""How many attention blocks stand on Swin-B."""
_SIDE = 384
_CHANNELS = 128  # of the first stage; every merging doubles them
_WIDTH = 1024
_PLACES = 12  # along a side of the last map


class SpatialBranch(nn.Module):
    """Swin, then attention blocks; the quality head of a checkpoint is held and not run.

    Args of the constructor:
        depths: blocks of Swin's stages.
        blocks: attention blocks.
        head_inputs: of the quality head; None where a checkpoint has none.
        filled: whether weights from a file will take the place of Swin's random ones.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = DEPTHS,
        blocks: int = BLOCKS,
        head_inputs: int | None = None,
        filled: bool = False,
    ) -> None:
        super().__init__()
        from timm.models.swin_transformer import SwinTransformer

        self.swin = SwinTransformer(
            img_size=_SIDE,
            patch_size=4,
            window_size=12,
            embed_dim=_CHANNELS,
            depths=depths,
            num_heads=(4, 8, 16, 32),
            num_classes=0,
            weight_init="skip" if filled else "",
        )
        self.bot4 = BottleneckStack(
            blocks=blocks, channels=_WIDTH, bottleneck=256, heads=4, head_channels=128, side=_PLACES
        )
        if head_inputs is not None:
            self.quality = nn.Sequential(nn.Linear(head_inputs, 128), nn.Linear(128, 1))

    def see(self, pictures: Tensor) -> Tensor:
        """[n, 3, 384, 384], normalised, to the map after Swin's last norm [n, c, 12, 12]."""
        return self.swin.forward_features(pictures).permute(0, 3, 1, 2)
