"""A two-layer perceptron on pooled features, trained with the field's correlation loss."""

from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load, save
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import gelu

from regressors.base import Head
from regressors.losses import plcc_loss, rank_loss
from regressors.metrics import fit_line
from regressors.pooling import pooled, pooled_width
from regressors.training import fit_module, hold_out_scenes, linear
from store.errors import HeadError
from store.table import FeatureTable


class Mlp(Head):
    """Linear, GELU, linear on standardised pooled features; PLCC loss, plus rank loss if weighted.

    The loss leaves scale and offset free: a line fitted on the training rows gives MOS units.  The
    epoch is chosen on scenes held out of the training rows, which neither the weights nor the
    standardisation see.  The width of 128 is that of RQ-VQA's head.
    """

    name: ClassVar[str] = "mlp"
    min_videos: ClassVar[int] = 10
    suffix: ClassVar[str] = ".safetensors"

    def __init__(
        self,
        *,
        width: PositiveInt = 128,
        # FAST-VQA adds the rank loss with 0.3.
        rank_weight: Annotated[FiniteFloat, Field(ge=0)] = 0.0,
        epochs: PositiveInt = 200,
        patience: PositiveInt = 30,
        batch_size: Annotated[int, Field(ge=2)] = 64,
        learning_rate: Annotated[FiniteFloat, Field(gt=0)] = 1e-3,
        weight_decay: Annotated[FiniteFloat, Field(ge=0)] = 1e-2,
        validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2,
        seed: Annotated[int, Field(ge=0, lt=2**64)] = 0,
    ) -> None:
        self.width = width
        self.rank_weight = rank_weight
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.validation_fraction = validation_fraction
        self.seed = seed

    def _fit(self, table: FeatureTable, mos: NDArray[np.float64]) -> str:
        held_out = hold_out_scenes(
            table.videos,
            fraction=self.validation_fraction,
            rng=np.random.default_rng(self.seed),
        )
        inputs = pooled(table)
        generator = torch.Generator().manual_seed(self.seed)
        network = _Perceptron(inputs.shape[1], self.width, generator=generator)
        network.standardise(inputs[~held_out])
        best_epoch = fit_module(
            network,
            torch.from_numpy(inputs),
            torch.from_numpy(mos).float(),
            held_out=held_out,
            loss=self._loss,
            epochs=self.epochs,
            patience=self.patience,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            generator=generator,
        )
        network.line.copy_(torch.tensor(fit_line(mos, network.predict(inputs))))
        self.network_ = network
        return (
            f"epoch {best_epoch} of {self.epochs} by SRCC on {held_out.sum()} of {len(mos)} "
            f"training videos, {self.validation_fraction:.0%} of the training scenes"
        )

    def _loss(self, predicted: Tensor, mos: Tensor) -> Tensor:
        return plcc_loss(predicted, mos) + self.rank_weight * rank_loss(predicted, mos)

    def _predict(self, table: FeatureTable) -> NDArray[np.float64]:
        slope, intercept = self.network_.line.tolist()
        return slope * self.network_.predict(pooled(table)) + intercept

    def _model_bytes(self) -> bytes:
        return save(self.network_.state_dict())

    def _restore(self, content: bytes, path: Path) -> None:
        inputs = pooled_width(self.specs_.values())
        network = _Perceptron(inputs, self.width, generator=torch.Generator())
        try:
            network.load_state_dict(load(content))
        except (SafetensorError, RuntimeError) as error:  # RuntimeError for other names or shapes
            raise HeadError(f"{path} does not fit this head, or is damaged: {error}") from error
        self.network_ = network.eval()


class _Perceptron(nn.Module):
    """[b, inputs] to [b]; standardises its inputs first."""

    mean: Tensor
    deviation: Tensor
    line: Tensor

    def __init__(self, inputs: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = linear(inputs, width, generator=generator)
        self.score = linear(width, 1, generator=generator)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        self.register_buffer("line", torch.zeros(2, dtype=torch.float64))  # slope, intercept

    def standardise(self, inputs: NDArray[np.float32]) -> None:
        """Take the mean and deviation of `inputs` [n, inputs]; constant ones are only shifted."""
        scaler = StandardScaler().fit(inputs.astype(np.float64))
        self.mean.copy_(torch.from_numpy(scaler.mean_))
        self.deviation.copy_(torch.from_numpy(scaler.scale_))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = gelu(self.hidden((inputs - self.mean) / self.deviation))
        return self.score(hidden).squeeze(1)

    def predict(self, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
        """[n], on the network's own scale."""
        with torch.inference_mode():
            return self(torch.from_numpy(inputs)).double().numpy()
