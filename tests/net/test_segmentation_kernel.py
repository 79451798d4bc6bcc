"""Segmentation against Linux: the same frames on the wire, byte for byte.

A TAP interface takes large frames from us as from a guest. A bridge passes them on to another one, whose
owner (we, too) accepts no offloads: Linux has to segment them and to compute their checksums in between. The
whole way is one system call, so that what can be read afterwards is all that becomes of a frame.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from guestwire.datapath.segmentation import segment
from guestwire.testing.namespaces import Namespace
from guestwire.virtio.segmentation import VIRTIO_NET_HDR_GSO_UDP_L4, NetHeader
from guestwire.virtio.segmentation import segment as model
from model.large_frames import DESTINATION, SOURCE, Sent, cut, large_frame, single_frame
from unit.datapath import requests

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root for TAP interfaces")]

FRAMES = 20_000
SEED = int(os.environ.get("GUESTWIRE_SEED", "20"))
"""The frames are made from this number and theirs: a failure names both."""

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # linux/if_tun.h
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
VNET_HEADER = 10  # bytes of a virtio_net_hdr unless TUNSETVNETHDRSZ says otherwise
LONGEST = 1 << 17


def open_tap(name: str, flags: int) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | flags))
        fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def let_bridges_be() -> None:
    # br_netfilter, where it is loaded, drops packets whose options make no sense, and cuts off what it takes
    # for padding.
    for path in Path("/proc/sys/net/bridge").glob("bridge-nf-call-*"):
        path.write_text("0")


class Kernel:
    """Two TAP interfaces and a bridge between them, in a namespace of their own."""

    def __init__(self) -> None:
        self.fds: list[int] = []
        self.namespace = Namespace("segments")
        try:
            self.namespace.call(lambda: self.fds.append(open_tap("large", IFF_VNET_HDR)))
            self.namespace.call(lambda: self.fds.append(open_tap("wire", 0)))
            self.namespace.call(let_bridges_be)
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        with self.namespace.netlink() as netlink:
            quiet = {"br_stp_state": 0, "br_mcast_snooping": 0}
            netlink.link("add", kind="bridge", ifname="bridge", **quiet)
            (bridge,) = netlink.link_lookup(ifname="bridge")
            for name in ("large", "wire"):
                (index,) = netlink.link_lookup(ifname=name)
                # Frames that are not segmented, only completed, must fit.
                netlink.link("set", index=index, master=bridge, mtu=65521, state="up")
            netlink.link("set", index=bridge, mtu=65521, state="up")

    def knows_uso(self) -> bool:
        """Whether Linux segments UDP for TAP interfaces: since 6.2."""
        return self.segment(*requests.udp(200, 100)) is not None

    def segment(self, header: NetHeader, frame: bytes) -> list[bytes] | None:
        """Return what Linux makes of a frame; None if it refuses it at once."""
        large, wire = self.fds
        try:
            os.write(large, header.pack()[:VNET_HEADER] + frame)
        except OSError:
            return None
        segments: list[bytes] = []
        while True:
            try:
                received = os.read(wire, LONGEST)
            except BlockingIOError:
                return segments
            if received.startswith(DESTINATION + SOURCE):
                segments.append(received)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.namespace.remove()


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    machine = Kernel()
    yield machine
    machine.close()


def compare(kernel: Kernel, random: Random, sent: Sent) -> str:
    """Compare the compiled segmentation with Linux, or where Linux drops the frame, with the model.

    Returns:
        what Linux did.
    """
    header, frame = sent
    segments = segment(header.pack(), frame, cut(random, len(frame)))
    wanted = kernel.segment(header, frame)
    if wanted:
        assert segments == wanted
        return "one segment" if len(wanted) == 1 else "several segments"
    assert segments == model(header, frame)
    return "refused" if wanted is None else "dropped"


def test_large_frames_become_what_linux_makes_of_them(kernel: Kernel) -> None:
    outcomes: Counter[str] = Counter()
    unknown = () if kernel.knows_uso() else (VIRTIO_NET_HDR_GSO_UDP_L4,)
    for number in range(FRAMES):
        random = Random(f"{SEED} {number}")
        sent = large_frame(random)
        try:
            outcome = compare(kernel, random, sent)
            # Linux has no use for segmentation where there is one segment, and drops some of those.
            made = outcome in {"several segments", "one segment"}
            assert made or len(model(*sent)) == 1 or sent[0].gso_type in unknown
        except AssertionError:
            raise AssertionError(f"GUESTWIRE_SEED={SEED}, frame {number}: {sent[0]}") from None
        outcomes[outcome] += 1
    print(f"GUESTWIRE_SEED={SEED}: {dict(outcomes)}")
    assert outcomes["several segments"] + outcomes["one segment"] > (0.55 if unknown else 0.9) * FRAMES
    assert outcomes["several segments"] > 0.4 * FRAMES


def test_completed_checksums_are_those_of_linux(kernel: Kernel) -> None:
    outcomes: Counter[str] = Counter()
    for number in range(2000):
        random = Random(f"{SEED} single {number}")
        sent = single_frame(random)
        outcomes[compare(kernel, random, sent)] += 1
    print(f"GUESTWIRE_SEED={SEED}: {dict(outcomes)}")
    assert outcomes["one segment"] > 0.6 * outcomes.total()
