"""Getting hold of a TAP interface: by its name, or as queues that are open already."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from guestwire.errors import ConfigurationError, HostError
from guestwire.host import netlink
from guestwire.host.privileges import Capability, permission_error
from guestwire.host.routes import default_route_leaves_by
from guestwire.host.tap import (
    FLAGS,
    FRAMES,
    LONGEST_NAME,
    SIOCGIFHWADDR,
    TUNGETDEVNETNS,
    TUNSETIFF,
    QueueFlag,
    TapInterface,
    interface_of,
    tap_request,
)

T = TypeVar("T")

_DEVICE: Final = "/dev/net/tun"
_OUR_NAMESPACE: Final = Path("/proc/thread-self/ns/net")
_HARDWARE_ADDRESS: Final = slice(2, 8)  # of a struct sockaddr


def open_tap(name: str, queues: int, namespace: str | None = None) -> TapInterface:
    """Open an interface that exists, with so many queues, or make it.

    Args:
        name: its name, or an alternative one of an interface that exists.
        queues: how many.
        namespace: a name under /run/netns or the path of a namespace's file; None for ours.

    Raises:
        HostError: it is of another kind, in use, or made for fewer queues; or the machine refuses.
    """
    ours = _OUR_NAMESPACE.stat()

    def inside() -> TapInterface:
        same = os.path.samestat(ours, _OUR_NAMESPACE.stat())
        return _open(name, queues, f"ip netns exec {namespace} " if namespace else "", same)

    if namespace is None:
        return inside()
    return _within(netlink.namespace_path(namespace), f"network namespace {namespace}", inside)


def _open(name: str, queues: int, prefix: str, ours: bool) -> TapInterface:
    link = netlink.find_link(netlink.links(), name)
    if link is not None:
        name = link.get_attr("IFLA_IFNAME")
    elif len(name.encode()) > LONGEST_NAME:
        raise HostError(
            f"there is no interface {name}, and a new one's name has at most {LONGEST_NAME} bytes",
            f"{prefix}ip -brief link",
        )
    flags = FRAMES | (QueueFlag.IFF_MULTI_QUEUE if queues > 1 else 0)
    if link is not None and _require_usable(name, link, queues, prefix):
        flags |= QueueFlag.IFF_MULTI_QUEUE
    with contextlib.ExitStack() as undo:
        opened: list[int] = []
        for number in range(queues):
            fd = _open_device()
            opened.append(fd)
            undo.callback(os.close, fd)
            # What is not there yet is made, but not taken from somebody who was quicker.
            exclusive = QueueFlag.IFF_TUN_EXCL if link is None and number == 0 else QueueFlag(0)
            _set_interface(fd, name, flags | exclusive, prefix)
        control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        undo.callback(control.close)
        interface = TapInterface(
            opened,
            control,
            created=link is None,
            ours=ours,
            bridge_index=link.get_attr("IFLA_MASTER") if link is not None else None,
        )
        undo.pop_all()
    return interface


def own_name(name: str, namespace: str | None = None) -> str:
    """Return the own name of the interface that has this name, or has it as an alternative one.

    Args:
        name: the name; it is returned as it is if no interface has it.
        namespace: as for `open_tap`.

    Raises:
        HostError: the namespace cannot be entered.
    """

    def inside() -> str:
        link = netlink.find_link(netlink.links(), name)
        own: str = name if link is None else link.get_attr("IFLA_IFNAME")
        return own

    if namespace is None:
        return inside()
    return _within(netlink.namespace_path(namespace), f"network namespace {namespace}", inside)


def _require_usable(name: str, link: Any, queues: int, prefix: str) -> bool:
    """Make sure that an interface can be opened so; return whether it was made for several queues."""
    information = link.get_attr("IFLA_LINKINFO")
    kind = information.get_attr("IFLA_INFO_KIND") if information else None
    if kind != "tun":
        raise HostError(
            f"interface {name} is no TAP interface ({f'its kind is {kind}' if kind else 'it is a device'})",
            f"use xdp:{name}, or another name for a TAP interface",
        )
    data = information.get_attr("IFLA_INFO_DATA")
    another = f"use another one: {prefix}ip tuntap add dev NAME mode tap"
    if data.get_attr("IFLA_TUN_TYPE") != QueueFlag.IFF_TAP:
        raise HostError(f"interface {name} is a TUN interface: its frames have no Ethernet header", another)
    multi_queue = bool(data.get_attr("IFLA_TUN_MULTI_QUEUE"))
    if queues > 1 and not multi_queue:
        raise HostError(
            f"TAP interface {name} was made for one queue, and the guest has {queues} queue pairs",
            f"{another} multi_queue",
        )
    if data.get_attr("IFLA_TUN_NUM_QUEUES") or data.get_attr("IFLA_TUN_NUM_DISABLED_QUEUES"):
        raise _in_use(name)
    if default_route_leaves_by([link["index"]]):
        raise HostError(
            f"TAP interface {name} carries the default route of its network namespace: whoever made that "
            "route did not mean a guest",
            f"use another interface: {prefix}ip -brief link",
        )
    return multi_queue


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
            raise HostError(
                f"this machine has no TAP interfaces: {_DEVICE}: {error.strerror}",
                "modprobe tun (CONFIG_TUN); in a container, give it /dev/net/tun",
            ) from error
        raise HostError(f"cannot open {_DEVICE}: {error.strerror}", f"ls -l {_DEVICE}") from error


def _set_interface(fd: int, name: str, flags: QueueFlag, prefix: str) -> None:
    """Make `fd` a queue of an interface."""
    try:
        tap_request(fd, TUNSETIFF, name, FLAGS.pack(flags))
        _, actual = interface_of(fd)
    except OSError as error:
        if error.errno in {errno.EPERM, errno.EACCES}:
            action = f"opening TAP interface {name}, which is not this user's,"
            if QueueFlag.IFF_TUN_EXCL in flags:
                action = f"making TAP interface {name}"
            refusal = permission_error(action, {Capability.CAP_NET_ADMIN})
            add = f"{prefix}ip tuntap add dev {name} mode tap user {os.geteuid()}"
            raise HostError(str(refusal), f"{refusal.remedy}; or make it for this user: {add}") from error
        if error.errno == errno.EBUSY:
            raise _in_use(name) from error
        raise HostError(
            f"cannot open TAP interface {name}: {error.strerror}", f"{prefix}ip -details link show {name}"
        ) from error
    if FRAMES not in actual:
        # Another process has a queue of it, and its settings hold for all.
        raise _in_use(name)


def _in_use(name: str) -> HostError:
    return HostError(
        f"TAP interface {name} is in use by another process, or by another guest",
        f"grep -l 'iff:.*{name}' /proc/[0-9]*/fdinfo/*",
    )


# --- adopting ----------------------------------------------------------------------------------------------


def adopt_tap(descriptors: Sequence[int]) -> TapInterface:
    """Take the queues of one interface that whoever started this process opened.

    The descriptors stay open; copies are used. The files are set to O_NONBLOCK.

    Raises:
        ConfigurationError: they are none.
    """
    names: dict[str, int] = {}
    with contextlib.ExitStack() as undo:
        queues: list[int] = []
        for number in descriptors:
            names.setdefault(_require_queue(number), number)
            os.set_inheritable(number, False)
            queues.append(os.dup(number))
            undo.callback(os.close, queues[-1])
            os.set_blocking(number, False)
        if len(names) > 1:
            raise ConfigurationError(
                f"the descriptors belong to different interfaces: {_enumerate(names)}",
                "give the queues of one TAP interface, one for each queue pair",
            )
        control, ours = _socket_beside(queues[0])
        if control is not None:
            undo.callback(control.close)
        bridge = _bridge_of(next(iter(names))) if ours else None
        interface = TapInterface(queues, control, created=False, ours=ours, bridge_index=bridge)
        undo.pop_all()
    return interface


def _bridge_of(name: str) -> int | None:
    link = next((link for link in netlink.links() if link.get_attr("IFLA_IFNAME") == name), None)
    bridge: int | None = link.get_attr("IFLA_MASTER") if link is not None else None
    return bridge


def _enumerate(names: dict[str, int]) -> str:
    return ", ".join(f"{name} ({number})" for name, number in names.items())


def _require_queue(number: int) -> str:
    """Make sure that a descriptor is a queue with the framing that we need; return its interface."""
    try:
        name, flags = interface_of(number)
    except OSError as error:
        reason = {
            errno.EBADF: "it is not open",
            errno.EBADFD: "it has no interface, or no longer",
        }.get(error.errno or 0, "it is something else")
        raise ConfigurationError(
            f"descriptor {number} is no queue of a TAP interface: {reason}",
            "pass descriptors of /dev/net/tun after TUNSETIFF, and name their numbers: tap:fd=3",
        ) from error
    if FRAMES not in flags:
        missing = ", ".join(str(flag.name) for flag in FRAMES & ~flags)
        raise ConfigurationError(
            f"descriptor {number}, of interface {name}, was opened without {missing}",
            "open it with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR",
        )
    return name


def _socket_beside(queue: int) -> tuple[socket.socket | None, bool]:
    """Make a socket in the namespace of a queue's interface; return it and whether that is ours.

    Who may not ask which namespace it is recognises the interface in its own by its address.
    """
    try:
        namespace = fcntl.ioctl(queue, TUNGETDEVNETNS)
    except OSError:
        return _socket_if_ours(queue)
    try:
        if os.path.samestat(os.fstat(namespace), _OUR_NAMESPACE.stat()):
            return _plain_socket(), True
        with contextlib.suppress(OSError):
            return netlink.in_namespace(Path(f"/proc/self/fd/{namespace}"), _plain_socket), False
        return None, False
    finally:
        os.close(namespace)


def _socket_if_ours(queue: int) -> tuple[socket.socket | None, bool]:
    control = _plain_socket()
    name, _ = interface_of(queue)
    with contextlib.suppress(OSError):
        addresses = {
            tap_request(fd, SIOCGIFHWADDR, name)[_HARDWARE_ADDRESS] for fd in (queue, control.fileno())
        }
        if len(addresses) == 1:
            return control, True
    control.close()
    return None, False


def _plain_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _within(path: Path, what: str, function: Callable[[], T]) -> T:
    try:
        return netlink.in_namespace(path, function)
    except FileNotFoundError as error:
        raise HostError(f"there is no {what}", "ip netns list") from error
    except PermissionError as error:
        raise permission_error(f"entering {what}", {Capability.CAP_SYS_ADMIN}) from error
    except OSError as error:
        raise HostError(f"cannot enter {what}: {error.strerror}", "ip netns list") from error
