"""A TAP interface: looked at, and told what a guest accepts (linux/if_tun.h).

An interface lives in one network namespace, which need not be ours. Its queues are files of /dev/net/tun and
work from anywhere; what is asked of the interface itself goes through a socket that was made in its
namespace, and belongs there for good.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import functools
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from guestwire.errors import HostError
from guestwire.host.announce import rarp_frame
from guestwire.host.privileges import Capability, permission_error

# linux/if_tun.h
_TUNSETOFFLOAD: Final = 0x400454D0
TUNSETIFF: Final = 0x400454CA
_TUNGETIFF: Final = 0x800454D2
_TUNGETVNETHDRSZ: Final = 0x800454D7
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETQUEUE: Final = 0x400454D9
TUNGETDEVNETNS: Final = 0x54E3

# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCGIFMTU: Final = 0x8921
_SIOCSIFMTU: Final = 0x8922
SIOCGIFHWADDR: Final = 0x8927
_SIOCGIFINDEX: Final = 0x8933
_SIOCBRADDIF: Final = 0x89A2
_IFF_UP: Final = 1

LONGEST_NAME: Final = 15  # of an interface, in bytes: IFNAMSIZ is one more
_REQUEST: Final = struct.Struct("16s24s")  # struct ifreq
_NUMBER: Final = struct.Struct("i")
FLAGS: Final = struct.Struct("H")


class QueueFlag(enum.IntFlag):
    """How an interface was made, and a queue of it opened."""

    IFF_TUN = 0x0001
    IFF_TAP = 0x0002
    IFF_MULTI_QUEUE = 0x0100
    IFF_ATTACH_QUEUE = 0x0200
    IFF_DETACH_QUEUE = 0x0400
    IFF_NO_PI = 0x1000
    IFF_VNET_HDR = 0x4000
    IFF_TUN_EXCL = 0x8000


class Offload(enum.IntFlag):
    """What the kernel may leave to the reader of a queue, in its virtio_net_hdr."""

    TUN_F_CSUM = 0x01
    TUN_F_TSO4 = 0x02
    TUN_F_TSO6 = 0x04
    TUN_F_TSO_ECN = 0x08
    TUN_F_USO4 = 0x20
    TUN_F_USO6 = 0x40


SEGMENTATION: Final = Offload.TUN_F_CSUM | Offload.TUN_F_TSO4 | Offload.TUN_F_TSO6 | Offload.TUN_F_TSO_ECN
UDP_SEGMENTATION: Final = Offload.TUN_F_USO4 | Offload.TUN_F_USO6
"""Since Linux 6.2, and only both together."""

FRAMES: Final = QueueFlag.IFF_TAP | QueueFlag.IFF_NO_PI | QueueFlag.IFF_VNET_HDR
"""A frame is a virtio_net_hdr and then an Ethernet frame."""


@dataclass(frozen=True, slots=True)
class TapLink:
    """An interface at one moment.

    Attributes:
        name: its name.
        mtu: the largest payload of a frame in bytes; None if its namespace cannot be looked into.
        up: whether it is set up; None likewise.
    """

    name: str
    mtu: int | None
    up: bool | None


class TapInterface:
    """A TAP interface and its open queues; made by `guestwire.host.tap_opening`.

    What its methods ask is refused with a HostError.

    Args:
        queues: their descriptors, which are closed with it.
        control: a socket in its namespace, likewise; None if that cannot be looked into.
        created: whether it was made by opening it.
        ours: whether its namespace is that of this process.
        bridge_index: the number of the bridge that it belongs to.

    Attributes:
        name: its name, when it was last looked at.
        queues: a descriptor for each, with O_NONBLOCK and O_CLOEXEC.
        created: whether it goes when its queues are closed.
        multi_queue: whether it was made with IFF_MULTI_QUEUE, so that a queue can be detached.
        index: its number in its namespace; None if that cannot be looked into.
        ours: whether its namespace is that of this process.
    """

    def __init__(
        self,
        queues: list[int],
        control: socket.socket | None,
        *,
        created: bool,
        ours: bool,
        bridge_index: int | None,
    ) -> None:
        self.queues = queues
        self.created = created
        self.ours = ours
        self._control = control
        self._bridge_index = bridge_index
        self.name, flags = interface_of(queues[0])
        self.multi_queue = QueueFlag.IFF_MULTI_QUEUE in flags
        self.index = None if control is None else index_of(control, self.name)

    def look(self) -> TapLink | None:
        """Look at it under the name that it has now; None if it is no more, or in another namespace."""
        try:
            name, _ = interface_of(self.queues[0])
            if self._control is None:
                return TapLink(name, None, None)
            if index_of(self._control, name) != self.index:
                return None
            self.name = name
            (mtu,) = _NUMBER.unpack_from(self._ask(_SIOCGIFMTU, name))
            (flags,) = FLAGS.unpack_from(self._ask(_SIOCGIFFLAGS, name))
        except OSError as error:
            if error.errno in {errno.EBADFD, errno.ENODEV}:
                return None
            raise
        return TapLink(name, mtu, bool(flags & _IFF_UP))

    def _ask(self, request: int, name: str, argument: bytes = b"") -> bytes:
        """Make a request of the interface called `name`; return the answer behind the name."""
        if self._control is None:
            raise HostError(
                f"the network namespace of TAP interface {name} cannot be looked into",
                "set it up before it is handed over, or run guestwire with CAP_NET_ADMIN and CAP_SYS_ADMIN",
            )
        return tap_request(self._control.fileno(), request, name, argument)

    def set_up(self) -> None:
        """Set it up."""
        with _refused(f"setting up TAP interface {self.name}", f"ip link set dev {self.name} up"):
            (flags,) = FLAGS.unpack_from(self._ask(_SIOCGIFFLAGS, self.name))
            self._ask(_SIOCSIFFLAGS, self.name, FLAGS.pack(flags | _IFF_UP))

    def set_mtu(self, mtu: int) -> None:
        """Set its MTU, in bytes."""
        with _refused(f"an MTU of {mtu} for TAP interface {self.name}", f"ip -details link show {self.name}"):
            self._ask(_SIOCSIFMTU, self.name, _NUMBER.pack(mtu))

    def mtu_of(self, neighbour: str) -> int:
        """Return the MTU of another interface in its namespace."""
        with _refused(f"looking at interface {neighbour}", "ip -brief link"):
            mtu: int = _NUMBER.unpack_from(self._ask(_SIOCGIFMTU, neighbour))[0]
            return mtu

    def require_joinable(self, bridge: str) -> int:
        """Make sure that it can be added to a bridge in its namespace, or is there; return its number."""
        what = f"adding TAP interface {self.name} to bridge {bridge}"
        with _refused(what, f"ip link add {bridge} type bridge; ip link set {bridge} up"):
            (bridge_index,) = _NUMBER.unpack_from(self._ask(_SIOCGIFINDEX, bridge))
            try:
                self._ask(_SIOCBRADDIF, bridge, _NUMBER.pack(0))
            except OSError as error:
                # So says a bridge of an interface that does not exist, once it knows that we may ask.
                if error.errno != errno.EINVAL:
                    raise
        if self._bridge_index not in {None, bridge_index}:
            raise HostError(
                f"{what} is refused: it belongs to another one",
                f"use another interface; which bridge this one belongs to: ip link show {self.name}",
            )
        return int(bridge_index)

    def join(self, bridge: str) -> None:
        """Add it to a bridge in its namespace, unless it is there already."""
        bridge_index = self.require_joinable(bridge)
        if bridge_index == self._bridge_index:
            return
        with _refused(f"adding TAP interface {self.name} to bridge {bridge}", f"ip link show {bridge}"):
            self._ask(_SIOCBRADDIF, bridge, _NUMBER.pack(self.index))
        self._bridge_index = bridge_index

    def set_header_size(self, size: int) -> None:
        """Let a virtio_net_hdr have 10 or 12 bytes, on all queues."""
        with _refused(f"headers of {size} bytes on TAP interface {self.name}"):
            fcntl.ioctl(self.queues[0], _TUNSETVNETHDRSZ, _NUMBER.pack(size))

    def set_offloads(self, offloads: Offload) -> None:
        """Say what the kernel may leave to the reader, on all queues; the rest it does before."""
        with _refused(f"offloads {offloads!r} on TAP interface {self.name}"):
            fcntl.ioctl(self.queues[0], _TUNSETOFFLOAD, int(offloads))

    @functools.cached_property
    def supported_offloads(self) -> Offload:
        """What the kernel knows. It is found out by trying, once; afterwards all offloads are off."""
        supported = Offload(0)
        for offloads in (SEGMENTATION, SEGMENTATION | UDP_SEGMENTATION):
            try:
                fcntl.ioctl(self.queues[0], _TUNSETOFFLOAD, int(offloads))
                supported = offloads
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        self.set_offloads(Offload(0))
        return supported

    def attach_queue(self, queue: int) -> None:
        """Let frames come to a queue, if that can be chosen. Harmless if they do."""
        self._set_queue(queue, QueueFlag.IFF_ATTACH_QUEUE)

    def detach_queue(self, queue: int) -> None:
        """Let frames come to the other queues only, if that can be chosen. Harmless if they do."""
        self._set_queue(queue, QueueFlag.IFF_DETACH_QUEUE)

    def _set_queue(self, queue: int, change: QueueFlag) -> None:
        if not self.multi_queue:
            return
        with _refused(f"changing queue {queue} of TAP interface {self.name}"):
            _, flags = interface_of(self.queues[queue])
            if (QueueFlag.IFF_DETACH_QUEUE in flags) == (change is QueueFlag.IFF_DETACH_QUEUE):
                return
            tap_request(self.queues[queue], _TUNSETQUEUE, "", FLAGS.pack(change))

    def announce(self, mac: bytes) -> None:
        """Send a gratuitous RARP as from the guest: into the interface, and not out of it."""
        with _refused(f"announcing the guest on TAP interface {self.name}"):
            (size,) = _NUMBER.unpack(fcntl.ioctl(self.queues[0], _TUNGETVNETHDRSZ, _NUMBER.pack(0)))
            frame = [bytes(size), rarp_frame(mac)]
            try:
                os.pwritev(self.queues[0], frame, -1, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                os.writev(self.queues[0], frame)

    def close(self) -> None:
        """Close all queues. Closing twice is harmless."""
        while self.queues:
            os.close(self.queues.pop())
        if self._control is not None:
            self._control.close()
            self._control = None


# --- requests ----------------------------------------------------------------------------------------------


def tap_request(fd: int, request: int, name: str, argument: bytes = b"") -> bytes:
    """Make an ioctl with a struct ifreq; return what is behind the name afterwards."""
    if len(name.encode()) > LONGEST_NAME:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    answer: bytes = fcntl.ioctl(fd, request, _REQUEST.pack(name.encode(), argument))
    return answer[16:]


def interface_of(queue: int) -> tuple[str, QueueFlag]:
    """Return the name of a queue's interface, and how it is open.

    Raises:
        OSError: EBADFD if there is no interface, or no longer.
    """
    answer = fcntl.ioctl(queue, _TUNGETIFF, bytes(_REQUEST.size))
    (flags,) = FLAGS.unpack_from(answer, 16)
    return answer[:16].rstrip(b"\0").decode(errors="replace"), QueueFlag(flags)


def index_of(control: socket.socket, name: str) -> int:
    """Return the number of the interface called `name` in a socket's namespace."""
    index: int = _NUMBER.unpack_from(tap_request(control.fileno(), _SIOCGIFINDEX, name))[0]
    return index


@contextlib.contextmanager
def _refused(what: str, remedy: str = "ip -details link show type tun") -> Iterator[None]:
    """Say what the machine refuses."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES}:
            raise permission_error(what, {Capability.CAP_NET_ADMIN}) from error
        raise HostError(f"{what} is refused: {error.strerror}", remedy) from error
