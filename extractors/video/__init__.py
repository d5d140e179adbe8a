"""Opening, decoding and writing videos: the only folder that knows PyAV, decord and torchcodec.

`probe` says what there is to decode, `decode` gives the pictures, `encode` writes a clip.
PyAV reads whatever FFmpeg reads, and turns it into RGB as `ffmpeg -pix_fmt rgb24` does; decord and
torchcodec decode and convert by other versions and flags, so that they are used only where the bits
were found to be the same.  Pixels are taken as square.
Shape letters: n presented frames, k frames of a chunk, h w pixels.
"""

from vqbank.extractors.video.decoders import DECODERS
from vqbank.extractors.video.decoding import Decoded, decode
from vqbank.extractors.video.encoding import encode
from vqbank.extractors.video.probing import Probe, probe
from vqbank.extractors.video.rgb import SCALER_FLAGS

__all__ = ["DECODERS", "SCALER_FLAGS", "Decoded", "Probe", "decode", "encode", "probe"]
