"""A bank that is there, to read."""

from pathlib import Path

from vqbank.store.bank import FeatureStore
from vqbank.store.files import allow_open_files


def open_bank(location: Path | str) -> FeatureStore:
    """Open a bank: what it holds is read when it is asked for.

    Args:
        location: the folder of a bank, or a URL that fsspec knows, such as `s3://bucket/bank`.

    Returns:
        The bank.  `bank.read(spec, video_id)` is one feature of one video, with `values`
        [t, *shape], `pts_seconds` [t] and `frame_index` [t]; `bank.table(videos, features)` is
        what heads see.

    Raises:
        BankError: if there is no bank, it is one of a newer format, or the package for URLs is not
            installed.

    Example:
        >>> bank = vqbank.open_bank("bank")
        >>> spec = bank.resolve("motion.series")
        >>> bank.read(spec, "set/clips/0.mp4").values.shape
        (6, 3)
    """
    allow_open_files()
    return FeatureStore.at(str(location))
