"""Finds the Ethernet frames in capture files: classic pcap, and pcapng.

The formats are those of the IETF's drafts draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng. Files come as
people have them: a recording that was interrupted ends in the middle of a frame, one with a snaplen holds
beginnings of frames. Whole frames are found, the others are counted with the reason.
"""

from __future__ import annotations

import dataclasses
import struct
from array import array
from collections import Counter
from collections.abc import Iterator

from guestwire.datapath.pcap import LINKTYPE_ETHERNET

SHORTEST_FRAME = 14
LONGEST_FRAME = 65557  # 65,535 bytes of IP behind an Ethernet header and two VLAN tags

# Classic pcap, by the first four bytes.
_MAGICS = {struct.pack(order + "I", magic): order for order in "<>" for magic in (0xA1B2C3D4, 0xA1B23C4D)}
_MODIFIED = {struct.pack(order + "I", 0xA1B2CD34) for order in "<>"}
_FILE_HEADER, _RECORD_HEADER = 24, 16
_LONGEST_RECORD = 1 << 18  # bytes: no program captures more of a frame

# pcapng: a section header block begins with a palindrome, and says the byte order behind it.
_SECTION_HEADER = 0x0A0D0D0A
_BYTE_ORDERS = {struct.pack(order + "I", 0x1A2B3C4D): order for order in "<>"}
_INTERFACE, _OBSOLETE_PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET = 1, 2, 3, 6
# The packets' blocks: which interface, how many bytes are there, how many there were.
_PACKETS = {_ENHANCED_PACKET: "I8x2I", _OBSOLETE_PACKET: "H10x2I"}
_BLOCK_FRAMING = 12  # type, length, and the length once more
_LONGEST_BLOCK = 1 << 24  # bytes: what Wireshark accepts

_COMPRESSED = {
    b"\x1f\x8b": "gunzip --keep",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\xfd7zXZ": "unxz --keep",
    b"\x04\x22\x4d\x18": "unlz4",
}
_COOKED = {113, 276}  # LINKTYPE_LINUX_SLL, LINKTYPE_LINUX_SLL2

CUT_SHORT = "cut short by the end of the file"
DAMAGED = "damaged, with all that follows"
SNAPLEN = "longer than what was captured of it (snaplen)"
TOO_SHORT = f"shorter than an Ethernet header of {SHORTEST_FRAME} bytes"
TOO_LONG = f"longer than {LONGEST_FRAME:,} bytes"
NOT_ETHERNET = "captured on an interface that is not Ethernet"
NO_INTERFACE = "captured on an interface that the file does not describe"
MISFIT = "longer than the block that holds it"


class CaptureError(ValueError):
    """A file holds no frame that can be sent.

    Args:
        message: why.
        remedy: what to do; ``FILE`` stands for the file.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclasses.dataclass(frozen=True)
class Capture:
    """The frames of a capture file.

    Attributes:
        data: the file's bytes.
        places: where each frame begins in them, and its length in bytes, by turns.
        left_out: how many records hold no whole Ethernet frame, by reason.
    """

    data: bytes
    places: array[int]
    left_out: Counter[str]

    def __len__(self) -> int:
        return len(self.places) // 2

    @property
    def losses(self) -> str:
        """What was left out, in words; empty if nothing was."""
        return "; ".join(f"{count} {reason}" for reason, count in self.left_out.items())


# Where a record's frame begins, how many bytes of it are there, and how many it had; or why there are none.
_Record = tuple[int, int, int] | str


def read(data: bytes) -> Capture:
    """Find the frames in a capture file's bytes.

    Raises:
        CaptureError: they are no capture file, or hold no whole Ethernet frame.
    """
    capture = Capture(data, array("Q"), Counter())
    for record in _records(data):
        if isinstance(record, str):
            capture.left_out[record] += 1
            continue
        at, captured, original = record
        if reason := _fault(captured, original):
            capture.left_out[reason] += 1
        else:
            capture.places.extend((at, captured))
    if not len(capture):
        why = f" but {capture.losses}" if capture.left_out else ""
        raise CaptureError(f"it holds no frame{why}", "tcpdump -n -r FILE, which shows what it holds")
    return capture


def _fault(captured: int, original: int) -> str:
    """Say why what was captured of a frame cannot be sent; empty if it can."""
    if captured < original:
        return SNAPLEN
    if captured < SHORTEST_FRAME:
        return TOO_SHORT
    return TOO_LONG if captured > LONGEST_FRAME else ""


def _records(data: bytes) -> Iterator[_Record]:
    if (order := _MAGICS.get(data[:4])) is not None:
        return _classic_records(data, order)
    if data[:4] == struct.pack("<I", _SECTION_HEADER):
        return _blocks(data)
    if data[:4] in _MODIFIED:
        raise CaptureError("it is a pcap file of the modified kind (Kuznetzov's)", "editcap -F pcap FILE NEW")
    for magic, command in _COMPRESSED.items():
        if data.startswith(magic):
            raise CaptureError("it is compressed", f"{command} FILE")
    raise CaptureError("it begins like neither a pcap nor a pcapng file", "file FILE")


def _classic_records(data: bytes, order: str) -> Iterator[_Record]:
    if len(data) < _FILE_HEADER:
        raise CaptureError(f"it is shorter than a pcap file's header of {_FILE_HEADER} bytes", "ls -l FILE")
    # The upper bits say how long the FCS behind each frame is; it is sent as it was captured.
    linktype = struct.unpack_from(order + "I", data, 20)[0] & 0xFFFF
    if linktype != LINKTYPE_ETHERNET:
        raise _other_linktype(linktype)
    lengths = struct.Struct(order + "8x2I")
    at = _FILE_HEADER
    while at < len(data):
        frame = at + _RECORD_HEADER
        if frame > len(data):
            yield CUT_SHORT
            return
        captured, original = lengths.unpack_from(data, at)
        if captured > len(data) - frame:
            yield CUT_SHORT if captured <= _LONGEST_RECORD else DAMAGED
            return
        yield frame, captured, original
        at = frame + captured


def _other_linktype(linktype: int) -> CaptureError:
    message = f"its link type is {linktype}, and only Ethernet (1) can be sent to a guest"
    if linktype in _COOKED:
        return CaptureError(
            f"{message}: it was captured on all interfaces at once, without Ethernet headers",
            "capture on one interface: tcpdump -i IFNAME -w NEW",
        )
    return CaptureError(message, "capture on an Ethernet interface: tcpdump -i IFNAME -w NEW")


def _blocks(data: bytes) -> Iterator[_Record]:
    """Walk over the blocks of a pcapng file."""
    at, section = 0, _Section("<")
    while at < len(data):
        if len(data) - at < _BLOCK_FRAMING:
            yield CUT_SHORT
            return
        if struct.unpack_from("<I", data, at)[0] == _SECTION_HEADER:
            order = _BYTE_ORDERS.get(data[at + 8 : at + 12])
            if order is None:
                yield DAMAGED
                return
            section = _Section(order)
        kind, length = struct.unpack_from(section.order + "2I", data, at)
        if not _BLOCK_FRAMING <= length <= _LONGEST_BLOCK or length % 4:
            yield DAMAGED
            return
        if length > len(data) - at:
            yield CUT_SHORT
            return
        if (record := section.record(data, kind, at + 8, at + length - 4)) is not None:
            yield record
        at += length


class _Section:
    """A section of a pcapng file: its byte order, and its interfaces.

    Args:
        order: of the bytes, as `struct` calls it.
    """

    def __init__(self, order: str) -> None:
        self.order = order
        self._interfaces: list[tuple[int, int]] = []  # link type and snaplen

    def record(self, data: bytes, kind: int, at: int, end: int) -> _Record | None:
        """What a block is, whose body lies from `at` to `end`; None if it holds no packet."""
        if kind == _INTERFACE:
            if end - at >= 8:
                self._interfaces.append(struct.unpack_from(self.order + "H2xI", data, at))
            return None
        if kind == _SIMPLE_PACKET:
            return self._simple_packet(data, at, end)
        if kind not in _PACKETS:
            return None
        if end - at < 20:
            return MISFIT
        interface, captured, original = struct.unpack_from(self.order + _PACKETS[kind], data, at)
        return self._packet(interface, at + 20, end, captured, original)

    def _simple_packet(self, data: bytes, at: int, end: int) -> _Record:
        if end - at < 4:
            return MISFIT
        (original,) = struct.unpack_from(self.order + "I", data, at)
        snaplen = self._interfaces[0][1] if self._interfaces else 0
        return self._packet(0, at + 4, end, min(original, snaplen or original), original)

    def _packet(self, interface: int, at: int, end: int, captured: int, original: int) -> _Record:
        if interface >= len(self._interfaces):
            return NO_INTERFACE
        if self._interfaces[interface][0] != LINKTYPE_ETHERNET:
            return NOT_ETHERNET
        return MISFIT if captured > end - at else (at, captured, original)
