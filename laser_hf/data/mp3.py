"""MP3 without a header that tells its length: decoders guess it from the first frame, and stop there."""

from __future__ import annotations

import re
import struct

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz; MPEG-1, 2 and 2.5
_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # of MPEG-1
_KNOWN = re.escape(bytes(byte for byte in range(16, 240) if byte & 12 != 12))  # bitrate and rate
_FRAME = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][" + _KNOWN + b"].", re.DOTALL)  # header of a frame, layer III
_TAGS = (b"TAG", b"APE", b"LYR")  # behind the last frame


def add_length(data: bytes) -> bytes:
    """The content of an MP3 file, led by a frame that tells the number of frames, if it has none already.

    `EOFError`: the last frame is cut off. (A file that is cut between two frames looks like a whole one.)
    """
    at = 10 + sum((byte & 127) << 7 * (3 - place) for place, byte in enumerate(data[6:10])) if data[:3] == b"ID3" else 0
    first = _FRAME.search(data, at)
    if first is None or any(name in data[first.start() :][:200] for name in (b"Xing", b"Info", b"VBRI")):
        return data
    at, count = first.start(), 0
    while data[at : at + 3] not in _TAGS and (found := _FRAME.search(data, at)):
        at, count = found.start() + _size(found[0]), count + 1
    if at > len(data):
        raise EOFError("its last frame is cut off")
    header = bytes((255, first[0][1] | 1, 9 << 4 | first[0][2] & 12, first[0][3]))  # without checksum
    silence = bytes((9, 17, 32)[(header[3] >> 6 != 3) + (header[1] >> 3 & 3 == 3)])
    frame = header + silence + b"Info" + struct.pack(">II", 1, count)
    return frame.ljust(_size(header), b"\0") + data[first.start() :]


def _size(header: bytes) -> int:
    """Bytes of a frame."""
    version = header[1] >> 3 & 3
    factor, kbits = (144_000, _KBITS_1) if version == 3 else (72_000, _KBITS)
    return factor * kbits[header[2] >> 4] // _RATES[version][header[2] >> 2 & 3] + (header[2] >> 1 & 1)
