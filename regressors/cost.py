"""A head's network before any training, with what it would get of videos: for what it costs."""

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from vqbank.regressors.batches import PaddedBatch
from vqbank.regressors.member import Seen
from vqbank.regressors.sequence import SequenceHead
from vqbank.store.table import FeatureTable


class AtStart(NamedTuple):
    """One network, however many a head trains."""

    network: nn.Module
    """In evaluation."""
    batch: PaddedBatch
    """All videos of the table."""


def at_start(head: SequenceHead, table: FeatureTable, device: torch.device) -> AtStart:
    """The network of a head on the features of a table.

    Args:
        head: that need not be fitted.
        table: of few videos: they make one batch.
        device: of both; on the meta device there are shapes and no numbers.

    Raises:
        HeadError: if the head cannot be fitted on such features, or stands on what their bank has
            beside them and this table has not.
    """
    table = head._chosen(table)
    inputs = head._inputs(table.specs, head._beside(table))
    with device:
        network = head._network(inputs, torch.Generator())
    series, rows = head._series(table), np.arange(len(table))
    choices = head._choices(table.roles)
    window = next(series.windows(rows, rng=np.random.default_rng(0)))
    values, masks = window.padded([rows], [None], [Seen(choices)] if choices else None)
    masks = {role: mask[0].to(device) for role, mask in masks.items()}
    batch = PaddedBatch(
        {role: value[0].to(inputs[role].dtype).to(device) for role, value in values.items()},
        masks[next(iter(values))],
        torch.tensor(0, device=device),
        {role: masks[role] for role in window.own},
    )
    return AtStart(network.eval(), batch)
