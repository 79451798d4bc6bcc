"""Capture files as people have them: which frames are found, and what is said of the others."""

from __future__ import annotations

import gzip
import io
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import Ether
from scapy.utils import PcapNgWriter, PcapWriter

from guestwire.errors import ConfigurationError
from guestwire.ports import capture_file
from guestwire.ports.capture_file import CaptureError, read
from guestwire.ports.simple import PcapControl

FRAME = bytes(range(60))
LONG = bytes(index % 251 for index in range(1514))
LARGE = bytes(index % 241 for index in range(65226))  # captured with TSO or GRO
RAW, SLL = 101, 113
ORDERS = pytest.mark.parametrize("order", ["<", ">"])


def frames(data: bytes) -> list[bytes]:
    places = read(data).places
    return [data[at : at + length] for at, length in zip(places[::2], places[1::2], strict=True)]


# --- classic -----------------------------------------------------------------------------------------


def header(order: str = "<", magic: int = 0xA1B2C3D4, linktype: int = 1) -> bytes:
    return struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 262144, linktype)


def record(frame: bytes, order: str = "<", original: int | None = None) -> bytes:
    length = len(frame) if original is None else original
    return struct.pack(order + "4I", 1, 2, len(frame), length) + frame


@ORDERS
@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D], ids=["us", "ns"])
@pytest.mark.parametrize("linktype", [1, 1 | 0x54000000], ids=["", "FCS"])
def test_whole_frames(order: str, magic: int, linktype: int) -> None:
    every = [FRAME, LONG, LARGE, bytes(14)]
    data = header(order, magic, linktype) + b"".join(record(frame, order) for frame in every)
    assert frames(data) == every
    assert not read(data).left_out


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (record(LONG)[:700], capture_file.CUT_SHORT),
        (record(LONG)[:16], capture_file.CUT_SHORT),
        (record(LONG)[:9], capture_file.CUT_SHORT),
        (struct.pack("<4I", 1, 2, 1 << 31, 60) + bytes(100), capture_file.DAMAGED),
        (record(FRAME, original=61), capture_file.SNAPLEN),
        (record(b""), capture_file.TOO_SHORT),
        (record(b"", original=60), capture_file.SNAPLEN),
        (record(bytes(13)), capture_file.TOO_SHORT),
        (record(bytes(65558)), capture_file.TOO_LONG),
    ],
    ids=str,
)
def test_others_are_counted_with_the_reason(behind: bytes, reason: str) -> None:
    data = header() + record(FRAME) + behind
    assert frames(data) == [FRAME]
    assert dict(read(data).left_out) == {reason: 1}


def test_frames_behind_those_that_are_left_out_are_found() -> None:
    rest = record(FRAME[:40], original=60) + record(b"") + record(FRAME[:41], original=60) + record(LONG)
    found = read(header() + rest)
    assert len(found) == 1
    assert found.losses == f"2 {capture_file.SNAPLEN}; 1 {capture_file.TOO_SHORT}"


# --- pcapng ------------------------------------------------------------------------------------------


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(order: str = "<", linktype: int = 1, snaplen: int = 0) -> bytes:
    options = struct.pack(order + "2H4s2H", 2, 3, b"abc", 0, 0)
    return block(1, struct.pack(order + "2HI", linktype, 0, snaplen) + options, order)


def enhanced(frame: bytes, order: str = "<", number: int = 0, original: int | None = None) -> bytes:
    length = len(frame) if original is None else original
    return block(6, struct.pack(order + "5I", number, 0, 1, len(frame), length) + frame, order)


def obsolete(frame: bytes, order: str = "<", number: int = 0) -> bytes:
    return block(2, struct.pack(order + "2H4I", number, 3, 0, 1, len(frame), len(frame)) + frame, order)


def simple(frame: bytes, order: str = "<", original: int | None = None) -> bytes:
    return block(3, struct.pack(order + "I", len(frame) if original is None else original) + frame, order)


@ORDERS
def test_packets_of_every_kind_of_block(order: str) -> None:
    statistics, unknown = block(5, bytes(12), order), block(0x80000BAD, bytes(5), order)
    every = [
        enhanced(FRAME, order),
        statistics,
        obsolete(FRAME[:59], order),
        unknown,
        simple(FRAME[:58], order),
    ]
    data = section(order) + interface(order) + b"".join(every) + enhanced(LARGE, order)
    assert frames(data) == [FRAME, FRAME[:59], FRAME[:58], LARGE]
    assert not read(data).left_out


def test_sections_have_byte_orders_and_interfaces_of_their_own() -> None:
    first = section("<") + interface("<", RAW) + interface("<") + enhanced(FRAME, "<", 1)
    second = section(">") + interface(">") + enhanced(LONG, ">") + enhanced(LONG, ">", 1)
    found = read(first + enhanced(FRAME, "<", 0) + second)
    assert frames(found.data) == [FRAME, LONG]
    assert dict(found.left_out) == {capture_file.NOT_ETHERNET: 1, capture_file.NO_INTERFACE: 1}


def test_a_simple_packet_is_as_long_as_the_snaplen_lets_it() -> None:
    data = section() + interface(snaplen=60) + simple(FRAME) + simple(FRAME, original=1514)
    assert frames(data) == [FRAME]
    assert dict(read(data).left_out) == {capture_file.SNAPLEN: 1}


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        (enhanced(FRAME)[:-1], capture_file.CUT_SHORT),
        (enhanced(FRAME)[:11], capture_file.CUT_SHORT),
        (enhanced(FRAME, original=61), capture_file.SNAPLEN),
        (struct.pack("<II", 6, 0) + bytes(100), capture_file.DAMAGED),
        (struct.pack("<II", 6, 13) + bytes(100), capture_file.DAMAGED),
        (struct.pack("<II", 6, 0xFFFFFFFC) + bytes(100), capture_file.DAMAGED),
        (block(0x0A0D0D0A, bytes(16)), capture_file.DAMAGED),
        (block(6, struct.pack("<5I", 0, 0, 1, 61, 61) + FRAME), capture_file.MISFIT),
        (block(6, struct.pack("<5I", 0, 0, 1, (1 << 32) - 1, 60) + FRAME), capture_file.MISFIT),
        (block(6, bytes(16)), capture_file.MISFIT),
        (block(2, bytes(16)), capture_file.MISFIT),
        (block(3, b""), capture_file.MISFIT),
        (block(3, struct.pack("<I", 100) + FRAME), capture_file.MISFIT),
        (block(1, bytes(4)) + enhanced(FRAME, number=1), capture_file.NO_INTERFACE),
    ],
    ids=str,
)
def test_packets_that_are_not_whole(behind: bytes, reason: str) -> None:
    data = section() + interface() + enhanced(FRAME) + behind
    assert frames(data) == [FRAME]
    assert dict(read(data).left_out) == {reason: 1}


# --- what others write -------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [PcapWriter, PcapNgWriter])
def test_what_scapy_writes(tmp_path: Path, writer: type) -> None:
    path = tmp_path / "written"
    with writer(str(path)) as written:
        for frame in (FRAME, LONG, LARGE):
            written.write(Ether(frame))
    assert frames(path.read_bytes()) == [FRAME, LONG, LARGE]


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "error", "remedy"),
    [
        (b"", "begins like neither", "file FILE"),
        (bytes(100), "begins like neither", "file FILE"),
        (header()[:20], "shorter than a pcap file's header", "ls -l"),
        (header(), "holds no frame$", "tcpdump -n -r FILE"),
        (section(), "holds no frame$", "tcpdump -n -r FILE"),
        (
            header() + record(FRAME[:50], original=60),
            "holds no frame but 1 longer than what",
            "tcpdump -n -r FILE",
        ),
        (
            section() + interface(linktype=SLL) + enhanced(FRAME),
            "1 captured on an interface that is not",
            "tcpdump",
        ),
        (section()[:10], "holds no frame but 1 cut short", "tcpdump"),
        (header(linktype=SLL) + record(FRAME), "link type is 113.*on all interfaces", "on one interface"),
        (header(linktype=276) + record(FRAME), "link type is 276.*on all interfaces", "on one interface"),
        (header(linktype=RAW) + record(FRAME), "link type is 101", "on an Ethernet interface"),
        (header(magic=0xA1B2CD34) + record(FRAME), "Kuznetzov", "editcap -F pcap FILE NEW"),
        (gzip.compress(header() + record(FRAME)), "compressed", "gunzip --keep FILE"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_help(data: bytes, error: str, remedy: str) -> None:
    with pytest.raises(CaptureError) as caught:
        read(data)
    assert re.search(error, str(caught.value))
    assert remedy in caught.value.remedy
    # Nothing that is typed for it may overwrite the file.
    assert "-w FILE" not in caught.value.remedy


@given(st.data())
def test_no_file_is_too_strange(data: st.DataObject) -> None:
    """Bytes of any kind: an error that helps, or frames that lie in the file."""
    whole = data.draw(
        st.sampled_from(
            [
                header() + record(FRAME) + record(LONG),
                section(">")
                + interface(">")
                + enhanced(FRAME, ">")
                + simple(FRAME, ">")
                + section()
                + interface(),
            ]
        )
    )
    strange = io.BytesIO(whole)
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=8)):
        strange.seek(at)
        strange.write(data.draw(st.binary(min_size=1, max_size=4)))
    content = strange.getvalue()[: data.draw(st.integers(0, len(whole)))]
    try:
        found = read(content)
    except CaptureError:
        return
    assert all(len(frame) >= 14 for frame in frames(content))
    assert all(
        at + length <= len(content) for at, length in zip(found.places[::2], found.places[1::2], strict=True)
    )


# --- the port ----------------------------------------------------------------------------------------


def test_a_port_says_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "in.pcap"
    path.write_bytes(header() + record(FRAME) + record(FRAME[:50], original=60) + record(LONG)[:100])
    PcapControl(str(path), "").open(1)
    (warning,) = caplog.messages
    losses = f"1 {capture_file.SNAPLEN}; 1 {capture_file.CUT_SHORT}"
    assert warning == f"{path}: frames that are sent: 1; left out: {losses}"


def test_a_port_names_the_file_in_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "in.pcap.gz"
    path.write_bytes(gzip.compress(header() + record(FRAME)))
    with pytest.raises(
        ConfigurationError, match=r"is not a capture file that can be sent: it is compressed"
    ) as caught:
        PcapControl(str(path), "").open(1)
    assert caught.value.remedy == f"gunzip --keep {path}"
