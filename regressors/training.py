"""The one training loop, and which rows it holds out."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn

from regressors.metrics import srcc
from store.errors import HeadError
from store.schema import Video


def scenes_of(videos: Sequence[Video]) -> list[str]:
    """The scene of each video; one without a scene is a scene of its own, called by its id."""
    return [video.id if video.scene is None else video.scene for video in videos]


def hold_out_scenes(
    videos: Sequence[Video], *, fraction: float, rng: np.random.Generator, at_least: int = 1
) -> NDArray[np.bool_]:
    """[n], true for the videos of randomly chosen scenes.

    round(fraction x scenes) scenes are held out, at least `at_least` and never all.  Which ones
    depends on the names of the scenes and on `rng`, not on the order of the videos.

    Raises:
        HeadError: if `fraction` is not between 0 and 1, or there are no more than `at_least`
            scenes.
    """
    if not 0 < fraction < 1:
        raise HeadError(f"a fraction of scenes lies between 0 and 1; got {fraction}")
    scenes = scenes_of(videos)
    names = sorted(set(scenes))
    if len(names) <= at_least:
        raise HeadError(
            f"holding out {at_least} of the scenes needs more than {at_least}; got {len(names)} "
            f"in {len(videos)} videos"
        )
    count = min(max(at_least, round(fraction * len(names))), len(names) - 1)
    held = {names[index] for index in rng.permutation(len(names))[:count]}
    return np.array([scene in held for scene in scenes])


def scene_folds(
    videos: Sequence[Video], count: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit and rows to judge by, for each of `count` folds, no scene on two sides.

    Fewer folds where there are fewer scenes.

    Raises:
        HeadError: if that leaves fewer than 2 folds.
    """
    scenes = scenes_of(videos)
    folds = min(count, len(set(scenes)))
    if folds < 2:
        raise HeadError(
            "choosing hyper-parameters needs at least 2 folds of training scenes; "
            f"got {count} folds and {len(set(scenes))} scenes in {len(videos)} videos"
        )
    return list(GroupKFold(folds).split(np.empty(len(videos)), groups=scenes))


def linear(width_in: int, width_out: int, *, generator: torch.Generator) -> nn.Linear:
    """A linear layer with PyTorch's default start, uniform in +-1/sqrt(width_in).

    Drawn from `generator`; `nn.Linear` itself would draw from the global one.
    """
    layer = nn.utils.skip_init(nn.Linear, width_in, width_out)
    bound = 1 / math.sqrt(width_in)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks of this size gain nothing from threads, and beside other work lose twentyfold.

    Besides, another number of threads would give other bits.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def fit_module(
    module: nn.Module,
    inputs: Tensor,
    mos: Tensor,
    *,
    held_out: NDArray[np.bool_],
    loss: Callable[[Tensor, Tensor], Tensor],
    epochs: int,
    patience: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    generator: torch.Generator,
) -> int:
    """Train `module` in place and leave it as it was after its best epoch, in evaluation mode.

    AdamW on the rows not held out, in shuffled batches of at least `batch_size` rows (all rows
    where they are fewer).  The best epoch is the first with the highest SRCC on the held-out rows;
    training ends `patience` epochs after it.

    Args:
        module: maps [b, ...] to [b].
        inputs: [n, ...].
        mos: [n].
        held_out: [n], true for the rows that choose the epoch.
        loss: of predictions [b] and scores [b].
        epochs: the most that are run.
        patience: epochs without a better SRCC after which training ends.
        batch_size: rows per step, at least 2.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        generator: draws the batches.

    Returns:
        The best epoch, counted from 1.

    Raises:
        HeadError: if the rows on either side share one score, if a number above is impossible, or
            if training diverges.
    """
    if epochs < 1 or patience < 1 or batch_size < 2:
        raise HeadError(
            "training needs epochs >= 1, patience >= 1 and batch_size >= 2; "
            f"got {epochs}, {patience} and {batch_size}"
        )
    held = torch.from_numpy(held_out)
    for name, rows in (("training", mos[~held]), ("held-out", mos[held])):
        if len(rows.unique()) < 2:
            raise HeadError(
                f"the {len(rows)} {name} rows share one MOS, which leaves nothing to rank; "
                "use more videos, another seed or another validation_fraction"
            )
    kept_inputs, kept_mos = inputs[~held], mos[~held]
    held_inputs, held_mos = inputs[held], mos[held].double().numpy()
    optimizer = torch.optim.AdamW(module.parameters(), lr=learning_rate, weight_decay=weight_decay)
    best_srcc, best_epoch, best_state = -math.inf, 0, deepcopy(module.state_dict())
    for epoch in range(1, epochs + 1):
        module.train()
        shuffled = torch.randperm(len(kept_mos), generator=generator)
        for rows in shuffled.tensor_split(max(1, len(shuffled) // batch_size)):
            step_loss = loss(module(kept_inputs[rows]), kept_mos[rows])
            optimizer.zero_grad()
            step_loss.backward()
            optimizer.step()
        module.eval()
        with torch.inference_mode():
            predicted = module(held_inputs).double().numpy()
        if not np.isfinite(predicted).all():
            raise HeadError(f"training diverged in epoch {epoch}; lower the learning rate")
        epoch_srcc = srcc(held_mos, predicted)  # NaN, where all predictions agree, is never better
        if epoch_srcc > best_srcc:
            best_srcc, best_epoch, best_state = epoch_srcc, epoch, deepcopy(module.state_dict())
        if epoch - best_epoch >= patience:
            break
    if best_epoch == 0:
        raise HeadError(f"predictions stayed constant for {epoch} epochs; raise the learning rate")
    module.load_state_dict(best_state)
    return best_epoch
