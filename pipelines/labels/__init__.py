"""Label files of data sets, read by what stands in them and never by what they are called."""

from vqbank.pipelines.labels.label import Label, Labels, Orders, key_of
from vqbank.pipelines.labels.reader import read_labels, score_columns

__all__ = ["Label", "Labels", "Orders", "key_of", "read_labels", "score_columns"]
