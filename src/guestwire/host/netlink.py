"""What we ask of the kernel by netlink, through pyroute2.

pyroute2 has no schema for the ``netdev`` generic-netlink family
(``Documentation/netlink/specs/netdev.yaml``), which says what XDP can do on an interface and
whether an AF_XDP socket sits on a queue.  The two messages that we need are described here.

pyroute2's blocking calls run an event loop of their own, and so fail inside a running one.
Functions here may be called from anywhere, coroutines included: where a loop runs, the request is
made in a short-lived thread, which is born into the caller's network namespace.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET6
from typing import Any, Final, TypeVar

from pyroute2 import IPRoute, netns
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

T = TypeVar("T")

_NETDEV_FAMILY: Final = "netdev"
_NETDEV_VERSION: Final = 1
_NETDEV_CMD_DEV_GET: Final = 1
_NETDEV_CMD_QUEUE_GET: Final = 10
_NETDEV_QUEUE_TYPE_RX: Final = 0
_RT_SCOPE_LINK: Final = 253

_NAMED_NAMESPACES: Final = Path("/run/netns")
"""Where iproute2 keeps a file for each network namespace that has a name."""


class XdpFeature(enum.Flag):
    """``enum netdev_xdp_act``: what an interface's driver offers to XDP, its own features first."""

    BASIC = 1 << 0
    REDIRECT = 1 << 1
    NDO_XMIT = 1 << 2
    XSK_ZEROCOPY = 1 << 3
    HW_OFFLOAD = 1 << 4
    RX_SG = 1 << 5
    NDO_XMIT_SG = 1 << 6


@dataclass(frozen=True, slots=True)
class XdpSupport:
    """What the ``netdev`` family says of one interface.

    Attributes:
        features: what the driver offers natively; empty where XDP is generic only.
        zero_copy_segments: into how many buffers a frame may be spread in zero-copy mode; 1 where
            the driver has no zero-copy mode or puts every frame into one buffer.
    """

    features: XdpFeature
    zero_copy_segments: int

    @property
    def native(self) -> bool:
        """Whether the driver runs XDP programs itself and can redirect frames to a socket."""
        return XdpFeature.BASIC | XdpFeature.REDIRECT in self.features

    @property
    def zero_copy(self) -> bool:
        """Whether the driver can use an AF_XDP memory area as its receive and transmit buffers."""
        return XdpFeature.XSK_ZEROCOPY in self.features

    @property
    def names(self) -> tuple[str, ...]:
        """The features by the names of the specification, such as ``xsk-zerocopy``."""
        return tuple(str(feature.name).lower().replace("_", "-") for feature in self.features)


class _DeviceMessage(genlmsg):  # type: ignore[misc]  # pyroute2 has no types
    prefix = "NETDEV_A_DEV_"
    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
        ("NETDEV_A_DEV_XDP_ZC_MAX_SEGS", "uint32"),
        ("NETDEV_A_DEV_XDP_RX_METADATA_FEATURES", "uint64"),
        ("NETDEV_A_DEV_XSK_FEATURES", "uint64"),
    )


class _QueueMessage(genlmsg):  # type: ignore[misc]  # pyroute2 has no types
    prefix = "NETDEV_A_QUEUE_"
    nla_map = (
        ("NETDEV_A_QUEUE_UNSPEC", "none"),
        ("NETDEV_A_QUEUE_ID", "uint32"),
        ("NETDEV_A_QUEUE_IFINDEX", "uint32"),
        ("NETDEV_A_QUEUE_TYPE", "uint32"),
        ("NETDEV_A_QUEUE_NAPI_ID", "uint32"),
        ("NETDEV_A_QUEUE_DMABUF", "uint32"),
        ("NETDEV_A_QUEUE_IO_URING", "hex"),
        ("NETDEV_A_QUEUE_XSK", "hex"),
    )


def outside_event_loop(function: Callable[[], T]) -> T:
    """Call ``function`` where no event loop runs: here, or else in a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function()
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(function).result()


def in_namespace(path: Path, function: Callable[[], T]) -> T:
    """Call ``function`` in the network namespace of the file ``path``, in a thread of its own.

    Raises:
        OSError: the namespace is gone, or CAP_SYS_ADMIN is missing.
    """

    def enter() -> T:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            netns.setns(descriptor)
        finally:
            os.close(descriptor)
        return function()

    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(enter).result()


def xdp_support(interface_index: int) -> XdpSupport | None:
    """What XDP can do on an interface, or ``None`` where the kernel does not say (before 6.3).

    Raises:
        OSError: with ``ENODEV`` if there is no such interface.
    """
    reply = _netdev_request(_DeviceMessage, _NETDEV_CMD_DEV_GET, [("NETDEV_A_DEV_IFINDEX", interface_index)])
    if reply is None:
        return None
    known = sum(feature.value for feature in XdpFeature)
    return XdpSupport(
        features=XdpFeature((reply.get_attr("NETDEV_A_DEV_XDP_FEATURES") or 0) & known),
        zero_copy_segments=reply.get_attr("NETDEV_A_DEV_XDP_ZC_MAX_SEGS") or 1,
    )


def socket_on_queue(interface_index: int, queue: int) -> bool | None:
    """Whether the kernel lists an AF_XDP socket on a receive queue.

    After the last descriptor of a socket in zero-copy mode is closed, the NIC goes on writing to
    its memory for tens of milliseconds; it has stopped when the kernel no longer lists the socket.

    Returns:
        ``None`` where the kernel cannot say: before 6.14, or while the interface is down.

    Raises:
        OSError: with ``ENODEV`` if there is no such interface, ``EINVAL`` if it has no such queue.
    """
    attributes = [
        ("NETDEV_A_QUEUE_IFINDEX", interface_index),
        ("NETDEV_A_QUEUE_TYPE", _NETDEV_QUEUE_TYPE_RX),
        ("NETDEV_A_QUEUE_ID", queue),
    ]
    try:
        reply = _netdev_request(_QueueMessage, _NETDEV_CMD_QUEUE_GET, attributes)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.EOPNOTSUPP}:
            return None
        raise
    if reply is None:
        return None
    return reply.get_attr("NETDEV_A_QUEUE_XSK") is not None


def wait_until_released(interface_index: int, queue: int, *, timeout_s: float = 2.0) -> bool:
    """Wait until the kernel no longer lists an AF_XDP socket on a receive queue.

    Returns:
        Whether the kernel said so; ``False`` when it cannot, or did not in time.
    """
    deadline = time.monotonic() + timeout_s
    while (listed := socket_on_queue(interface_index, queue)) and time.monotonic() < deadline:
        time.sleep(0.002)
    return listed is False


def links() -> list[Any]:
    """All interfaces of the current network namespace, as pyroute2's link messages."""

    def ask() -> list[Any]:
        with IPRoute() as route:
            return list(route.get_links())

    return outside_event_loop(ask)


def find_link(links: list[Any], name: str) -> Any | None:
    """The interface that has a name, its own or an alternative one (``ip link property add ... altname``)."""
    by_name = (link for link in links if link.get_attr("IFLA_IFNAME") == name)
    by_other_name = (link for link in links if name in _alternative_names(link))
    return next(by_name, None) or next(by_other_name, None)


def _alternative_names(link: Any) -> list[str]:
    properties = link.get_attr("IFLA_PROP_LIST")
    return properties.get_attrs("IFLA_ALT_IFNAME") if properties else []


def link_in_namespace(interface_index: int, namespace_id: int) -> Any | None:
    """An interface of another network namespace, or ``None`` if we may not look (CAP_NET_ADMIN)."""

    def ask() -> Any | None:
        with IPRoute() as route:
            try:
                found = route.link("get", index=interface_index, if_netnsid=namespace_id)
            except NetlinkError:
                return None
            return next(iter(found), None)

    return outside_event_loop(ask)


def namespace_name(namespace_id: int) -> str | None:
    """The iproute2 name of the network namespace that ours knows by a number, if it has one."""

    def ask() -> str | None:
        with IPRoute() as route:
            for path in sorted(_NAMED_NAMESPACES.glob("*")):
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    continue
                try:
                    answer = route.get_netnsid(fd=descriptor)
                except NetlinkError:
                    continue
                finally:
                    os.close(descriptor)
                if answer and answer["nsid"] == namespace_id:
                    return path.name
        return None

    return outside_event_loop(ask)


def namespace_path(name: str) -> Path:
    """The file of a network namespace that has a name."""
    return _NAMED_NAMESPACES / name


def addresses(interface_index: int) -> tuple[str, ...]:
    """The IP addresses of an interface, such as ``192.0.2.1/24``, without IPv6's of scope link.

    The kernel gives an IPv6 address of scope link to every interface that is up: it does not tell
    whether anybody means to use it.
    """

    def ask() -> tuple[str, ...]:
        with IPRoute() as route:
            found = [entry for entry in route.get_addr() if entry["index"] == interface_index]
        return tuple(
            f"{entry.get_attr('IFA_LOCAL') or entry.get_attr('IFA_ADDRESS')}/{entry['prefixlen']}"
            for entry in found
            if not (entry["family"] == AF_INET6 and entry["scope"] == _RT_SCOPE_LINK)
        )

    return outside_event_loop(ask)


def _netdev_request(message_class: type[Any], command: int, attributes: list[tuple[str, int]]) -> Any | None:
    """Send one request of the ``netdev`` family; ``None`` if the kernel has no such family."""

    def ask() -> Any | None:
        with GenericNetlinkSocket() as socket:
            # A kernel without the family is an answer to us, not an error to be logged.
            getattr(socket, "asyncore", socket).module_err_level = "debug"
            try:
                socket.bind(_NETDEV_FAMILY, message_class)
            except NetlinkError as error:
                if error.code == errno.ENOENT:
                    return None
                raise
            message = message_class()
            message["cmd"] = command
            message["version"] = _NETDEV_VERSION
            message["attrs"] = attributes
            replies = socket.nlm_request(message, msg_type=socket.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK)
            return next(iter(replies), None)

    try:
        return outside_event_loop(ask)
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error
