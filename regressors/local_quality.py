"""Quality at every place of a frame, by heads that see fragments or maps of frames."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqbank.regressors.batches import PaddedBatch
from vqbank.regressors.member import Seen
from vqbank.regressors.sequence import SequenceHead
from vqbank.store.errors import HeadError
from vqbank.store.table import FeatureTable


def local_quality(head: SequenceHead, table: FeatureTable) -> NDArray[np.float64]:
    """[n, g, g]: what a head says of each of g x g places of n videos, in the unit of its MOS.

    Of `ram` the tokens of fragments stand in the place of the class token (figure 8 of RAM-VQA); of
    `mapnet` every place of the map is scored for itself, and their mean is the video's score (as in
    FAST-VQA's quality maps).  Clips and times are averaged.

    Args:
        head: fitted; its network has places.
        table: of the features that it was fitted on, n videos.

    Raises:
        HeadError: if the head is not fitted, or its network has no places.
    """
    head.predict(table.subset([0]))  # with every refusal of a prediction
    table = head._chosen(table)
    series = head._series(table)
    seen = Seen(head._choices(table.roles))
    networks = [network.to(series.device) for network in _networks(head, table)]
    found = []
    with torch.inference_mode():
        for row in range(len(table)):
            rows = np.array([row])
            series.hold(rows)
            for window in series.windows(rows, rng=np.random.default_rng(0)):
                values, masks = window.padded([rows], [None], [seen])
                first = next(iter(values))
                batch = PaddedBatch(
                    {role: one[0] for role, one in values.items()},
                    masks[first][0],
                    torch.zeros((), dtype=torch.int64),
                    {role: masks[role][0] for role in window.own},
                )
                places = [network.local(batch)[0] for network in networks]
                found.append(torch.stack(places).double().cpu().numpy())
    raw = np.stack(found, axis=1)  # [runs, n, g, g]
    scored = head.ensemble_.in_mos(raw.reshape(len(raw), -1), head.combine)
    return scored.reshape(raw.shape[1:])


def _networks(head: SequenceHead, table: FeatureTable) -> Iterator[Any]:
    """One for each run, with what it learnt."""
    if head.standardise:
        raise HeadError(f"{head.name}: places are scored of rows as they are banked")
    inputs = head._inputs(table.specs, head._beside(table, head.record_.get("companions", {})))
    for run in range(head.runs):
        network = head._network(inputs, torch.Generator()).eval()
        if not hasattr(network, "local"):
            raise HeadError(
                f"{head.name} sees a video as a whole; places are told by ram and mapnet"
            )
        learnt: dict[str, Tensor] = {n: v[run] for n, v in head.ensemble_.state.items()}
        network.load_state_dict(learnt, strict=False)
        yield network
