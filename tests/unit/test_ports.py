"""Ports as they are described in words, and how frames lie in what they register."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guestwire.errors import ConfigurationError, HostError
from guestwire.ports import geometry
from guestwire.ports.geometry import KERNEL_HEADROOM, LARGEST_CHUNK, TAIL_RESERVE, Geometry
from guestwire.ports.parse import SYNTAX, parse_port
from guestwire.ports.simple import SENT_OFFLOADS, PcapControl, SimplePort
from guestwire.ports.xdp import XdpControl
from guestwire.ports.xdp_options import XdpOptions
from guestwire.virtio.features import GUEST_OFFLOADS, Feature, unmet_dependencies

# --- words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "interface", "options"),
    [
        ("xdp:eth1", "eth1", XdpOptions()),
        ("xdp:eth1,queue=12", "eth1", XdpOptions(queue=12)),
        ("xdp:eth1,queue=0,mode=zero-copy", "eth1", XdpOptions(mode="zero-copy")),
        ("xdp:eth1,queue=1,mode=direct", "eth1", XdpOptions(queue=1, mode="direct")),
        ("xdp:eth1,mode=bounce,queue=1", "eth1", XdpOptions(queue=1, mode="bounce")),
        ("xdp:eth1.5:0", "eth1.5:0", XdpOptions()),
        ("xdp:eth1,shared=yes", "eth1", XdpOptions(shared=True)),
        ("xdp:eth1,shared=no", "eth1", XdpOptions()),
        ("xdp:eth1,steer=02:00:00:00:00:0A", "eth1", XdpOptions(steer="02:00:00:00:00:0a")),
        ("xdp:eth1,trust-mtu=yes", "eth1", XdpOptions(trust_mtu=True)),
        ("xdp:eth1,offloads=no,gro=yes", "eth1", XdpOptions(offloads="no", gro=True)),
        ("xdp:eth1,guest-offloads=no", "eth1", XdpOptions(guest_offloads=False)),
        ("xdp:eth1,payload=in-place", "eth1", XdpOptions(payload="in-place")),
        ("xdp:eth1,busy-poll=yes", "eth1", XdpOptions(busy_poll=True)),
        (
            "xdp:eth1,busy-poll=yes,busy-poll-budget=256",
            "eth1",
            XdpOptions(busy_poll=True, busy_poll_budget=256),
        ),
        ("xdp:eth1,headers=in-place", "eth1", XdpOptions(headers="in-place")),
        ("xdp:eth1,source=02:00:00:00:00:01", "eth1", XdpOptions(source="02:00:00:00:00:01")),
    ],
)
def test_xdp(words: str, interface: str, options: XdpOptions) -> None:
    port = parse_port(words)
    assert isinstance(port, XdpControl)
    assert (port.name, port.options) == (interface, options)
    assert port.status().kind == "xdp"
    assert port.status().mode_reason == "no guest is attached"
    port.close()


def test_a_source_is_not_checked_in_place() -> None:
    with pytest.raises(ConfigurationError, match="only be checked in a copied header"):
        parse_port("xdp:eth1,source=02:00:00:00:00:01,headers=in-place")


def test_frames_are_not_merged_for_a_guest_that_may_not_have_large_ones() -> None:
    with pytest.raises(ConfigurationError, match="only for a guest that is offered large ones"):
        parse_port("xdp:eth1,gro=yes,guest-offloads=no")


@pytest.mark.parametrize(
    "words",
    ["xdp:eth1,offloads=yes,guest-offloads=no", "wire:lan,guest-offloads=no"],
)
def test_the_half_that_a_guest_must_understand_is_withheld(words: str) -> None:
    assert parse_port(words).offloads == SENT_OFFLOADS
    assert parse_port(words.removesuffix(",guest-offloads=no")).offloads & GUEST_OFFLOADS


@pytest.mark.parametrize(
    ("options", "copied"),
    [
        (XdpOptions(), False),
        (XdpOptions(headers="copied"), True),
        (XdpOptions(headers="in-place"), False),
        (XdpOptions(source="02:00:00:00:00:01"), True),
    ],
)
def test_headers_are_copied_if_asked_for_or_looked_at(options: XdpOptions, copied: bool) -> None:
    assert options.copies_headers is copied


@pytest.mark.parametrize("kind", ["echo", "null"])
def test_simple(kind: str) -> None:
    port = parse_port(kind)
    assert isinstance(port, SimplePort)
    assert port.status().kind == kind


@pytest.mark.parametrize(
    ("words", "files", "repeat"),
    [
        ("pcap:in", ("in", ""), False),
        ("pcap:in,out", ("in", "out"), False),
        ("pcap:,out", ("", "out"), False),
        ("pcap:in,repeat=yes", ("in", ""), True),
        ("pcap:in,,repeat=yes", ("in", ""), True),
        ("pcap:in,out,repeat=yes", ("in", "out"), True),
        ("pcap:in,out,repeat=no", ("in", "out"), False),
        ("pcap:in,a=b", ("in", "a=b"), False),
    ],
)
def test_pcap(words: str, files: tuple[str, str], repeat: bool) -> None:
    port = parse_port(words)
    assert isinstance(port, PcapControl)
    assert (port.source, port.sink) == files
    assert port.repeat is repeat
    assert port.max_queue_pairs == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("", "unknown port ''"),
        ("XDP:eth1", "unknown port 'XDP:eth1'"),
        ("tun:tun0", "unknown port 'tun:tun0'"),
        ("echo:1", "unknown port 'echo:1'"),
        ("xdp", "port xdp: which interface?"),
        ("xdp:,queue=1", "port xdp: which interface?"),
        ("xdp:eth1,", "cannot understand ''"),
        ("xdp:eth1,queue", "cannot understand 'queue'"),
        ("xdp:eth1,queue=-1", "cannot understand 'queue=-1'"),
        ("xdp:eth1,queue=¹", "cannot understand 'queue=¹'"),
        ("xdp:eth1,queue=0x1", "cannot understand 'queue=0x1'"),
        ("xdp:eth1,mode=Direct", "cannot understand 'mode=Direct'"),
        ("xdp:eth1,copy=1", "cannot understand 'copy=1'"),
        ("xdp:eth1,queue=1,queue=2", "cannot understand 'queue=2'"),
        ("xdp:eth1,shared=perhaps", "cannot understand 'shared=perhaps'"),
        ("xdp:eth1,steer=03:00:00:00:00:01", "cannot understand 'steer=03:00:00:00:00:01'"),
        ("xdp:eth1,source=02:00", "cannot understand 'source=02:00'"),
        ("xdp:eth1,busy-poll=20", "cannot understand 'busy-poll=20'"),
        ("xdp:eth1,busy-poll-budget=0", "cannot understand 'busy-poll-budget=0'"),
        ("xdp:eth1,busy-poll-budget=65536", "cannot understand 'busy-poll-budget=65536'"),
        ("xdp:eth1,headers=moved", "cannot understand 'headers=moved'"),
        ("pcap", "port pcap: which files?"),
        ("pcap:,", "port pcap: which files?"),
        ("pcap:in,out,", "cannot understand ''"),
        ("pcap:in,out,more", "cannot understand 'more'"),
        ("pcap:in,repeat=maybe", "cannot understand 'repeat=maybe'"),
        ("pcap:,out,repeat=yes", "there is no input to repeat"),
    ],
)
def test_what_is_no_port(words: str, error: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_port(words)
    assert error in str(caught.value)
    assert SYNTAX in str(caught.value.remedy)


# --- capture files -----------------------------------------------------------------------------------


@pytest.mark.timeout(30)
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigurationError, match="is a pipe: the input is read as a whole"):
        PcapControl(str(pipe), "").open(1)
    with pytest.raises(HostError, match=r"cannot create the capture file .*: No such device or address"):
        PcapControl("", str(pipe)).open(1)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    port = PcapControl("", str(pipe))
    port.open(1)
    port.close()
    os.close(reader)


def test_a_capture_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot read the capture file .*: No such file") as caught:
        PcapControl(f"{tmp_path}/in", "").open(1)
    assert caught.value.remedy == f"ls -l {tmp_path}/in"


def test_a_file_that_is_no_capture(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("no capture file, but long enough to be one")
    with pytest.raises(ConfigurationError, match="is not a capture file that can be sent") as caught:
        PcapControl(f"{tmp_path}/in", "").open(1)
    assert caught.value.remedy == f"file {tmp_path}/in"


def test_a_capture_file_that_cannot_be_made(tmp_path: Path) -> None:
    port = PcapControl("", f"{tmp_path}/no/out")
    with pytest.raises(HostError, match=r"cannot create the capture file .*: No such file") as caught:
        port.open(1)
    assert caught.value.remedy == f"ls -ld {tmp_path}/no"
    port.close()
    assert port.status().mode_reason is None


# --- geometry ----------------------------------------------------------------------------------------


def check(lies: Geometry, mtu: int) -> None:
    assert lies.longest_frame == min(
        mtu + 22, LARGEST_CHUNK - KERNEL_HEADROOM
    )  # Ethernet header, two VLAN tags
    # What the kernel leaves free, and what may be written, fill a chunk.
    assert KERNEL_HEADROOM + lies.headroom + lies.writable == lies.chunk == LARGEST_CHUNK
    assert lies.headroom >= 0
    assert lies.writable >= max(lies.longest_frame, TAIL_RESERVE)
    assert lies.longest_frame <= lies.room_needed <= lies.writable


@pytest.mark.parametrize("mtu", [68, 1500, geometry.largest_mtu(multi_buffer=False)])
def test_single_buffers_have_room_for_one_tag(mtu: int) -> None:
    lies = geometry.copy_mode(mtu, in_place=True)
    assert lies.room_needed == lies.writable == max(mtu + 18, TAIL_RESERVE)
    assert KERNEL_HEADROOM + lies.headroom + lies.writable == lies.chunk == LARGEST_CHUNK
    assert geometry.copy_mode(mtu, in_place=True, mergeable=True) == geometry.copy_mode(mtu)


@pytest.mark.parametrize("mtu", [68, 430, 431, 1500, 2000, geometry.largest_mtu(multi_buffer=False)])
def test_copy_mode_writes_no_more_than_the_frame(mtu: int) -> None:
    lies = geometry.copy_mode(mtu)
    check(lies, mtu)
    assert lies.room_needed == max(lies.longest_frame, TAIL_RESERVE)


@pytest.mark.parametrize("mtu", [3823, 9000, geometry.largest_mtu(multi_buffer=True)])
def test_longer_frames_go_over_several_buffers(mtu: int) -> None:
    own, bounce = geometry.copy_mode(mtu, mergeable=True, in_place=True), geometry.copy_mode(mtu)
    for lies in (own, bounce):
        assert lies.several_buffers
        assert lies.longest_frame == mtu + 22
        assert KERNEL_HEADROOM + lies.headroom + lies.writable == lies.chunk == LARGEST_CHUNK
    # All that Linux posts for mergeable frames qualifies; without them, nothing does.
    assert own.room_needed == own.writable == 1530 - 12
    assert bounce.room_needed > lies.longest_frame


def test_a_linux_guests_buffers_qualify() -> None:
    # 1,530 bytes is the smallest that Linux posts for an MTU of 1,500, its virtio_net_hdr included; mergeable
    # ones are made of whole cache lines.
    assert 12 + geometry.copy_mode(1500, in_place=True).room_needed <= 1530
    assert 12 + geometry.copy_mode(1500, in_place=True, mergeable=True).room_needed <= 1536
    zero_copy = geometry.zero_copy_mode(1500, "igb", trust_mtu=True)
    assert zero_copy is not None
    assert 12 + zero_copy.room_needed <= 1530
    # In steps of 128 bytes, a little less MTU does without that trust.
    cautious = geometry.zero_copy_mode(1382, "virtio_net")
    assert cautious is not None
    assert 12 + cautious.room_needed <= 1530


def test_small_chunks_for_scattered_pages() -> None:
    for driver, chunk in (("igb", 256 + 2048), ("virtio_net", 2048)):
        lies = geometry.zero_copy_mode(1500, driver, huge_pages=False)
        assert lies is not None
        assert lies.chunk == chunk
        assert KERNEL_HEADROOM + lies.headroom + lies.writable == chunk


@pytest.mark.parametrize(
    ("mtu", "driver", "writable", "room_needed"),
    [
        (1500, "igb", 2048, 2048),
        (1500, "virtio_net", 1536, 1536),
        (1500, "unheard_of", 2048, 2048),
        (1500, None, 2048, 2048),
        (1022, None, 2048, 2048),  # 1,022 + 26 bytes are more than 1,024
        (998, None, 1024, 1024),
        (3046, None, 3072, 3072),
    ],
)
def test_zero_copy_mode(mtu: int, driver: str | None, writable: int, room_needed: int) -> None:
    lies = geometry.zero_copy_mode(mtu, driver)
    assert lies is not None
    check(lies, mtu)
    assert (lies.writable, lies.room_needed) == (writable, room_needed)


def test_an_mtu_that_no_chunk_holds() -> None:
    assert geometry.zero_copy_mode(3047, None) is None
    assert geometry.zero_copy_mode(3800, "virtio_net") is not None
    assert geometry.zero_copy_mode(geometry.largest_mtu(multi_buffer=False), "virtio_net") is None


def test_offloads_are_offered_unless_they_would_break_a_promise() -> None:
    sending = XdpOptions().features
    assert (
        Feature.VIRTIO_NET_F_HOST_TSO4 | Feature.VIRTIO_NET_F_HOST_USO | Feature.VIRTIO_NET_F_CSUM in sending
    )
    assert unmet_dependencies(sending) == {}
    assert XdpOptions(mode="zero-copy").features == Feature(0)
    assert XdpOptions(mode="zero-copy", offloads="yes").features == sending
    assert XdpOptions(offloads="no").features == Feature(0)
    merging = XdpOptions(offloads="no", gro=True).features
    assert Feature.VIRTIO_NET_F_GUEST_TSO4 | Feature.VIRTIO_NET_F_GUEST_TSO6 in merging
    assert unmet_dependencies(merging) == {}
