"""Which decoders and codecs this machine has."""

from importlib import import_module
from importlib.metadata import version

import av

from vqbank.store.errors import in_words

CODECS = ("h264", "hevc", "av1", "vp9", "vp8", "mpeg4", "mpeg2video", "mjpeg", "prores", "ffv1")
"""Codecs of the videos that data sets have."""
_MODULES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec.decoders"}


def decoder_states() -> dict[str, tuple[str, str]]:
    """Of each name of `DECODERS`, its version and an empty text, or no version and why not."""
    return {name: _state(module) for name, module in _MODULES.items()}


def _state(module: str) -> tuple[str, str]:
    try:
        import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        return "", in_words(error).splitlines()[0]
    return version(module.partition(".")[0]), ""


def codec_states() -> dict[str, bool]:
    """Of each of CODECS, whether PyAV's FFmpeg decodes it."""
    return {name: name in av.codecs_available for name in CODECS}


def ffmpeg_version() -> str:
    """Of the libavcodec that PyAV brings."""
    return ".".join(map(str, av.library_versions["libavcodec"]))
