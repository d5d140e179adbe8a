"""Which pictures of a packet are presented, by the headers of VP8, VP9 and AV1."""

from collections.abc import Iterator
from typing import Any


def shown_in(codec: str, packet: Any) -> int:
    """How many pictures of a packet are presented, by the codec's own headers."""
    if codec not in ("vp8", "vp9", "av1"):
        return 1
    data = memoryview(packet)
    if codec == "vp8":  # show_frame of RFC 6386, section 9.1
        return data[0] >> 4 & 1
    if codec == "vp9":
        return sum(_vp9_shows(frame) for frame in _vp9_frames(data))
    # AV1 bitstream specification, section 5.9.2: show_existing_frame, two bits of frame_type and
    # show_frame begin the header.  Only still pictures have another one.
    headers = (payload for kind, payload in _obus(data) if kind in (3, 6) and payload)
    return sum(payload[0] >> 7 or payload[0] >> 4 & 1 for payload in headers)


def _vp9_frames(data: memoryview) -> Iterator[memoryview]:
    """The frames of a packet: VP9 bitstream specification, annex B."""
    marker = data[-1]
    count, length_bytes = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = len(data) - 2 - count * length_bytes
    if marker >> 5 != 0b110 or index < 0 or data[index] != marker:
        yield data
        return
    start = 0
    for at in range(index + 1, len(data) - 1, length_bytes):
        end = start + int.from_bytes(data[at : at + length_bytes], "little")
        yield data[start:end]
        start = end


def _vp9_shows(frame: memoryview) -> int:
    """show_existing_frame or show_frame: VP9 bitstream specification, section 6.2."""
    bits = int.from_bytes(bytes(frame[:2]).ljust(2, b"\0"), "big")
    after = 11 - (bits >> 12 & 3 == 3)  # frame_marker, profile, and a zero in profile 3
    return bits >> after & 1 or bits >> after - 2 & 1


def _obus(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The open bitstream units of a packet, by type: AV1 bitstream specification, section 5.3."""
    at = 0
    while at < len(data):
        header = data[at]
        at += 2 if header & 4 else 1
        length = len(data) - at
        if header & 2:
            length = shift = 0
            for byte in data[at : at + 8]:
                length |= (byte & 127) << shift
                at, shift = at + 1, shift + 7
                if byte < 128:
                    break
        yield header >> 3 & 15, data[at : at + length]
        at += length
