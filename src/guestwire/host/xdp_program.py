"""The XDP program that hands the frames of a NIC's queues to AF_XDP sockets.

Theory of operation.  The program is six instructions: it looks up the queue that a frame arrived on
in a map of AF_XDP sockets (XSKMAP) and redirects the frame there.  A queue without a socket passes
its frames on to the kernel's network stack, as if the program were not there, so the other queues
of the interface keep working.

The program is attached by a BPF link, which lives as long as somebody holds its file descriptor.
Nothing has to be cleaned up after a process that was killed: the kernel closes the descriptor, the
link goes, and the program with it.  Somebody may detach the link by force meanwhile; then the program
is attached anew.  A forked child that keeps the descriptor keeps the program
attached; a child that calls execve does not, since all descriptors here are close-on-exec.

*Native* mode runs the program in the driver, before the kernel makes a socket buffer of the frame,
and is what zero copy needs.  *Generic* mode works on every interface, later and slower.  Attaching
resets some NICs for a second: keep the program attached for the life of a port.
"""

from __future__ import annotations

import errno
import os
import socket
from types import TracebackType
from typing import Final, Literal, Self

from guestwire.errors import HostError
from guestwire.host import bpf
from guestwire.host.capabilities import KernelVersion, kernel_version
from guestwire.host.interface import Interface
from guestwire.host.privileges import Capability, permission_error
from guestwire.host.xdp_occupation import PROGRAM_NAME, occupied_error

Mode = Literal["native", "generic"]

MINIMUM_KERNEL: Final = KernelVersion(5, 11)
"""BPF links for XDP came with 5.9; since 5.11 BPF maps are not charged as locked memory."""

REQUIRED_CAPABILITIES: Final = frozenset({Capability.CAP_NET_ADMIN, Capability.CAP_BPF})
"""What loading an XDP program takes; CAP_SYS_ADMIN includes CAP_BPF."""

# linux/if_link.h
_XDP_FLAGS: Final[dict[Mode, int]] = {"generic": 1 << 1, "native": 1 << 2}

# linux/bpf.h: the action that bpf_redirect_map takes for a queue without a socket.
_XDP_PASS: Final = 2

# offsetof(struct xdp_md, rx_queue_index)
_RX_QUEUE_INDEX: Final = 16

# Errors about a mode, not about the interface or this process: the other mode may do.
_MODE_REFUSED: Final = frozenset(
    {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC, errno.ERANGE, errno.ENOMEM, errno.ENOTCONN}
)


class XdpProgram:
    """An XDP program on an interface, with a place for one AF_XDP socket for each receive queue.

    Attributes:
        interface_index: the number of the interface.
        mode: ``native`` or ``generic``.
        mode_reason: why the mode is not ``native``; empty if it is.
        program_id: the kernel's number of the program, as ``ip link show`` prints it.
        queues: how many queues there is a place for.
    """

    def __init__(
        self,
        *,
        interface_index: int,
        mode: Mode,
        mode_reason: str,
        program_id: int,
        queues: int,
        map_fd: int,
        program_fd: int,
        link_fd: int,
    ) -> None:
        self.interface_index: Final = interface_index
        self.mode: Final = mode
        self.mode_reason: Final = mode_reason
        self.queues: Final = queues
        self.program_id: Final = program_id
        self._map_fd = map_fd
        # The link comes first: closing it takes the program off the interface.
        self._descriptors = [link_fd, program_fd, map_fd]

    @classmethod
    def attach(
        cls,
        interface_index: int,
        queues: int,
        *,
        mode: Literal["auto", "native", "generic"] = "auto",
        multi_buffer: bool = False,
    ) -> XdpProgram:
        """Load the program and attach it to an interface of the current network namespace.

        Args:
            interface_index: where.
            queues: for how many receive queues, counted from 0, there shall be a place.
            mode: ``auto`` takes native mode if the driver agrees, else generic mode.
            multi_buffer: whether the program accepts frames that lie in several buffers.  Without
                that, drivers refuse an MTU that does not fit in one page.

        Raises:
            HostError: the kernel refuses; the message says why, the remedy what to do.
        """
        map_fd, program_fd = _load(queues, multi_buffer=multi_buffer)
        wanted: tuple[Mode, ...] = ("native", "generic") if mode == "auto" else (mode,)
        try:
            program_id = bpf.program_information(program_fd).id
            attached_as, reason, link_fd = _attach_first(program_fd, interface_index, wanted)
        except BaseException:
            os.close(program_fd)
            os.close(map_fd)
            raise
        return cls(
            interface_index=interface_index,
            mode=attached_as,
            mode_reason=reason,
            program_id=program_id,
            queues=queues,
            map_fd=map_fd,
            program_fd=program_fd,
            link_fd=link_fd,
        )

    @property
    def attached(self) -> bool:
        """Whether the program is still on the interface.

        It is not when the interface has gone, or when somebody has detached the link (BPF_LINK_DETACH), which
        the kernel tells nobody.
        """
        link_fd = self._descriptors[0]
        return bpf.linked_interface(link_fd) == self.interface_index

    def attach_again(self) -> None:
        """Put the program back on the interface, in its mode, with the sockets that it has.

        Raises:
            HostError: the kernel refuses, above all because another program is there.
        """
        program_fd = self._descriptors[1]
        _, _, link_fd = _attach_first(program_fd, self.interface_index, (self.mode,))
        os.dup2(link_fd, self._descriptors[0], inheritable=False)
        os.close(link_fd)

    def set_socket(self, queue: int, socket_fd: int) -> None:
        """Send the frames that arrive on a queue to an AF_XDP socket, bound already or later.

        The kernel takes the entry out by itself when the socket is closed.

        Raises:
            HostError: there is no place for that queue, or the descriptor is no AF_XDP socket.
        """
        self._require_place(queue)
        try:
            bpf.update_element(self._map_fd, queue, socket_fd)
        except OSError as error:
            raise HostError(f"descriptor {socket_fd} cannot serve queue {queue}: {error.strerror}") from error

    def clear_socket(self, queue: int) -> None:
        """Let the frames that arrive on a queue pass to the kernel's network stack again.

        Raises:
            HostError: there is no place for that queue.
        """
        self._require_place(queue)
        bpf.delete_element(self._map_fd, queue)

    def close(self) -> None:
        """Take the program off the interface; doing so again changes nothing."""
        while self._descriptors:
            os.close(self._descriptors.pop(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _require_place(self, queue: int) -> None:
        # A closed descriptor's number may belong to somebody else by now.
        if not self._descriptors:
            raise ValueError("the XDP program is closed")
        if not 0 <= queue < self.queues:
            raise HostError(f"the XDP program has places for {self.queues} queues, not for {queue}")


def load_and_drop() -> bool:
    """Load the program without attaching it anywhere, and drop it.

    Returns:
        Whether the kernel compiles it (the BPF JIT); an interpreted program is several times
        slower.

    Raises:
        HostError: this process cannot load it; the message says why, the remedy what to do.
    """
    map_fd, program_fd = _load(1, multi_buffer=False)
    try:
        return bool(bpf.program_information(program_fd).jited_prog_len)
    finally:
        os.close(program_fd)
        os.close(map_fd)


def _instructions(map_fd: int) -> bytes:
    """The program: ``return bpf_redirect_map(&sockets, context->rx_queue_index, XDP_PASS)``."""
    return b"".join(
        (
            # r2 = *(u32 *)(r1 + rx_queue_index); r1 is the context
            bpf.instruction(0x61, destination=2, source=1, offset=_RX_QUEUE_INDEX),
            # r1 = the map of this descriptor (BPF_PSEUDO_MAP_FD); a 64-bit load takes two places
            bpf.instruction(0x18, destination=1, source=1, immediate=map_fd),
            bpf.instruction(0x00),
            # r3 = XDP_PASS
            bpf.instruction(0xB7, destination=3, immediate=_XDP_PASS),
            # call bpf_redirect_map
            bpf.instruction(0x85, immediate=bpf.FUNCTION_REDIRECT_MAP),
            # exit
            bpf.instruction(0x95),
        )
    )


def _load(queues: int, *, multi_buffer: bool) -> tuple[int, int]:
    """Make the map and load the program; returns their file descriptors."""
    try:
        map_fd = bpf.create_map(
            bpf.MAP_TYPE_XSKMAP, key_bytes=4, value_bytes=4, entries=queues, name=PROGRAM_NAME
        )
    except OSError as error:
        raise _load_error(error, "make a map of AF_XDP sockets", "") from error
    try:
        program_fd = bpf.load_program(
            _instructions(map_fd),
            program_type=bpf.PROGRAM_TYPE_XDP,
            attach_type=bpf.ATTACH_TYPE_XDP,
            flags=bpf.PROGRAM_FLAG_XDP_HAS_FRAGS if multi_buffer else 0,
            name=PROGRAM_NAME,
        )
    except bpf.VerifierError as error:
        os.close(map_fd)
        raise _load_error(error, "load its XDP program", error.log) from error
    return map_fd, program_fd


def _attach_first(program_fd: int, interface_index: int, modes: tuple[Mode, ...]) -> tuple[Mode, str, int]:
    """Attach in the first mode accepted: that mode, why not an earlier one, the link."""
    reason = "" if "native" in modes else "generic mode was asked for"
    for mode in modes:
        try:
            link_fd = bpf.create_xdp_link(program_fd, interface_index, _XDP_FLAGS[mode])
        except OSError as error:
            refusal = _attach_error(error, interface_index, mode)
            if mode == modes[-1] or error.errno not in _MODE_REFUSED:
                raise refusal from error
            reason = str(refusal)
        else:
            return mode, reason, link_fd
    raise AssertionError("there is always a mode to try")


def _load_error(error: OSError, action: str, verifier_log: str) -> HostError:
    subject = f"the kernel does not let this process {action}"
    if error.errno in {errno.EPERM, errno.EACCES} and not verifier_log:
        return permission_error("loading an XDP program", REQUIRED_CAPABILITIES)
    if error.errno == errno.ENOSYS:
        return HostError("the kernel has no bpf(2) system call", "use a kernel built with CONFIG_BPF_SYSCALL")
    log = f"; the verifier says: {verifier_log}" if verifier_log else ""
    version = kernel_version()
    if version < MINIMUM_KERNEL:
        return HostError(
            f"{subject}: kernel {version} is older than {MINIMUM_KERNEL}{log}",
            f"use kernel {MINIMUM_KERNEL} or newer",
        )
    return HostError(
        f"{subject}: {error.strerror}{log}", "zgrep -E 'BPF_SYSCALL|XDP_SOCKETS' /proc/config.gz"
    )


def _attach_error(error: OSError, interface_index: int, mode: Mode) -> HostError:
    """Say in words why the kernel did not attach the program.

    The kernel's own words (the extended acknowledgement) do not come with a BPF link, so the error
    number is read with the knowledge of where in the kernel it comes from: ``dev_xdp_attach`` in
    ``net/core/dev.c``, ``veth_xdp_set`` in ``drivers/net/veth.c``.
    """
    try:
        name = socket.if_indextoname(interface_index)
    except OSError:
        return HostError(f"there is no interface number {interface_index}", "ip -brief link")
    if error.errno in {errno.EPERM, errno.EACCES}:
        return permission_error(f"attaching an XDP program to {name}", REQUIRED_CAPABILITIES)
    interface = Interface.open(name)
    if error.errno in {errno.EBUSY, errno.EEXIST}:
        return occupied_error(name, interface.programs)
    explanation, remedy = _refusal(error, interface)
    return HostError(f"interface {name} refuses an XDP program in {mode} mode: {explanation}", remedy)


def _refusal(error: OSError, interface: Interface) -> tuple[str, str]:
    """Why a driver refuses an XDP program in some mode, and what to do about it."""
    name, peer = interface.name, interface.peer
    if error.errno == errno.ENOSPC and peer:
        return "its peer sends on more queues than it receives on", peer_queues_remedy(interface)
    if error.errno == errno.ERANGE and peer:
        remedy = peer.command("ip link set dev {name} mtu 1500")
        return "the MTU of its peer does not fit in one page", remedy
    explanations = {
        errno.EOPNOTSUPP: (
            "its driver has no native XDP, or not together with LRO and hardware GRO",
            f"ethtool -K {name} lro off rx-gro-hw off",
        ),
        errno.EINVAL: (
            "its driver does not accept the present configuration, most often the MTU",
            f"ip link set dev {name} mtu 1500",
        ),
        errno.ENOMEM: (
            "its driver has no queues or memory left for XDP",
            f"ethtool -L {name} combined 1",
        ),
        errno.ENOTCONN: ("it is a veth interface without a peer", f"ip link show dev {name}"),
    }
    unexplained = (error.strerror or str(error), "dmesg | tail")
    return explanations.get(error.errno or 0, unexplained)


def peer_queues_remedy(interface: Interface) -> str:
    """What to type so that a veth interface receives on as many queues as its peer sends on."""
    peer, channels = interface.peer, interface.channels
    if peer is None or channels is None or peer.transmit_queues is None:
        needed = "with N the number of transmit queues of its peer"
        return f"ethtool -L {interface.name} rx N, {needed}"
    if peer.transmit_queues <= channels.maximum_receive:
        return f"ethtool -L {interface.name} rx {peer.transmit_queues}"
    return peer.command(f"ethtool -L {{name}} tx {interface.receive_queues}")
