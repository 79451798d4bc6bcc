"""Frames for guestwire to send: a capture file that its ``pcap`` port plays."""

from __future__ import annotations

import struct
from pathlib import Path

COUNT = 64
"""Frames in the file: few, so that they stay in the cache, as the ones that testpmd makes do."""

# As testpmd's txonly has them (app/test-pmd/txonly.c): UDP from 198.18.0.1 to 198.18.0.2.
HEADERS = bytes.fromhex("020000000000 525400000001 0800")
MAGIC, SNAPLEN, ETHERNET = 0xA1B2C3D4, 65535, 1


def capture(folder: Path, size: int) -> Path:
    """Write a capture file with frames of a size, and return where it is."""
    path = folder / "frames.pcap"
    length = size - len(HEADERS)
    ip = struct.pack("!BBHIBBH", 0x45, 0, length, 0, 64, 17, 0) + bytes((198, 18, 0, 1, 198, 18, 0, 2))
    udp = struct.pack("!HHHH", 9, 9, length - len(ip), 0)
    frame = (HEADERS + ip + udp).ljust(size, b"\0")
    record = struct.pack("=IIII", 0, 0, size, size) + frame
    path.write_bytes(struct.pack("=IHHiIII", MAGIC, 2, 4, 0, 0, SNAPLEN, ETHERNET) + record * COUNT)
    return path
