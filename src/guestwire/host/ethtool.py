"""What we ask of a network driver by the ethtool ioctl: who it is, its channels, its offloads.

Unlike ``/sys/class/net``, which shows the namespace that mounted it, the ioctl answers for the
network namespace that the calling thread is in.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from pyroute2.ethtool.ioctl import EthtoolError, IoctlEthtool

_SIOCETHTOOL: Final = 0x8946
_ETHTOOL_GDRVINFO: Final = 0x00000003
_ETHTOOL_GPFLAGS: Final = 0x00000027
_ETH_SS_PRIV_FLAGS: Final = 2
_INTERFACE_NAME_BYTES: Final = 16

_CHECKSUM_FEATURES: Final = ("tx-checksum-ip-generic", "tx-checksum-ipv4", "tx-checksum-ipv6")
_INSERTING_FEATURES: Final = ("tx-vlan-hw-insert", "tx-vlan-stag-hw-insert")
_STRIPPING_FEATURES: Final = ("rx-vlan-hw-parse", "rx-vlan-stag-hw-parse")


class _DriverInformation(ctypes.Structure):
    """``struct ethtool_drvinfo``."""

    _fields_ = (
        ("cmd", ctypes.c_uint32),
        ("driver", ctypes.c_char * 32),
        ("version", ctypes.c_char * 32),
        ("fw_version", ctypes.c_char * 32),
        ("bus_info", ctypes.c_char * 32),
        ("erom_version", ctypes.c_char * 32),
        ("reserved2", ctypes.c_char * 12),
        ("n_priv_flags", ctypes.c_uint32),
        ("n_stats", ctypes.c_uint32),
        ("testinfo_len", ctypes.c_uint32),
        ("eedump_len", ctypes.c_uint32),
        ("regdump_len", ctypes.c_uint32),
    )


class _Value(ctypes.Structure):
    """``struct ethtool_value``."""

    _fields_ = (("cmd", ctypes.c_uint32), ("data", ctypes.c_uint32))


class _InterfaceRequest(ctypes.Structure):
    """``struct ifreq`` with ``ifr_data``, padded to the size that the kernel copies."""

    _fields_ = (
        ("name", ctypes.c_char * _INTERFACE_NAME_BYTES),
        ("data", ctypes.c_void_p),
        ("padding", ctypes.c_char * 16),
    )


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver's name, and the bus address of its device (empty for a virtual interface)."""

    name: str
    bus_address: str


@dataclass(frozen=True, slots=True)
class Channels:
    """How many queues an interface has, and could have.

    Attributes:
        receive: receive queues in use.
        transmit: transmit queues in use.
        maximum_receive: to how many receive queues ``ethtool -L`` can go.
        setting: the word that ``ethtool -L`` takes: ``combined`` or ``rx``.
    """

    receive: int
    transmit: int
    maximum_receive: int
    setting: str


@dataclass(frozen=True, slots=True)
class Feature:
    """Whether a feature of an interface is on, and whether ``ethtool -K`` can change that."""

    active: bool
    changeable: bool


def request(name: str, argument: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> None:
    """Make one ethtool request of interface ``name``.

    Args:
        name: the interface.
        argument: begins with the command; the answer is written over it.

    Raises:
        OSError: with ``ENODEV`` if there is no such interface, ``EOPNOTSUPP`` if its driver does not
            know the command, ``EPERM`` if it takes CAP_NET_ADMIN.
    """
    carrier = _InterfaceRequest(name=name.encode(), data=ctypes.addressof(argument))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, carrier)


def driver(name: str) -> Driver | None:
    """The driver of interface ``name``, or ``None`` if it does not say."""
    information = _DriverInformation(cmd=_ETHTOOL_GDRVINFO)
    try:
        request(name, information)
    except OSError:
        return None
    return Driver(
        name=bytes(information.driver).decode(errors="replace"),
        bus_address=bytes(information.bus_info).decode(errors="replace"),
    )


def channels(name: str) -> Channels | None:
    """The channels of interface ``name``, or ``None`` if its driver has no such notion."""
    try:
        with closing(IoctlEthtool(name)) as ethtool:
            answer = ethtool.get_channels()
    except (EthtoolError, OSError):
        return None
    return Channels(
        receive=answer.rx_count + answer.combined_count,
        transmit=answer.tx_count + answer.combined_count,
        maximum_receive=answer.max_rx + answer.max_combined,
        setting="combined" if answer.max_combined else "rx",
    )


def transmit_checksum_offload(name: str) -> bool | None:
    """Whether interface ``name`` takes frames whose checksum is still to be computed.

    Returns:
        ``None`` if the driver does not say.

    Raises:
        OSError: with ``ENODEV`` if there is no such interface.
    """
    active = _active(name, _CHECKSUM_FEATURES)
    return None if active is None else bool(active)


def transmit_vlan_offload(name: str) -> bool | None:
    """Whether interface ``name`` takes frames whose VLAN tag, of either kind, is beside them.

    Returns:
        ``None`` if the driver does not say.

    Raises:
        OSError: with ``ENODEV`` if there is no such interface.
    """
    active = _active(name, _INSERTING_FEATURES)
    return None if active is None else bool(active)


def receive_vlan_offloads(name: str) -> tuple[str, ...]:
    """By which features interface ``name`` takes VLAN tags out of received frames (``ethtool -k``).

    Raises:
        OSError: with ``ENODEV`` if there is no such interface.
    """
    return _active(name, _STRIPPING_FEATURES) or ()


def _active(name: str, words: tuple[str, ...]) -> tuple[str, ...] | None:
    """Those of some features that are on; ``None`` if the driver does not say."""
    try:
        with closing(IoctlEthtool(name)) as ethtool:
            features = ethtool.get_features()
            return tuple(word for word in words if word in features and features.is_active(word))
    except EthtoolError:
        return None
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise
        return None


def leave_nothing_to_hardware(name: str) -> None:
    """Have interface ``name`` complete its frames: with checksums and VLAN tags in them (``ethtool -K``).

    Raises:
        OSError: it cannot be changed.
    """
    with closing(IoctlEthtool(name)) as ethtool:
        features = ethtool.get_features()
        for word in (*_CHECKSUM_FEATURES, *_INSERTING_FEATURES):
            if word in features and features.is_available(word):
                features[word] = False
        ethtool.set_features(features)


def receive_ring_size(name: str) -> int | None:
    """How many buffers a receive queue of interface ``name`` has in its NIC (``ethtool -g``).

    Returns:
        ``None`` if the driver does not say.
    """
    try:
        with closing(IoctlEthtool(name)) as ethtool:
            return int(ethtool.get_rings().rx) or None
    except (EthtoolError, OSError):
        return None


def feature(name: str, word: str) -> Feature | None:
    """A feature of interface ``name``, such as ``rx-ntuple-filter`` (``ethtool -k``).

    Returns:
        ``None`` if the kernel does not know it, or there is no such interface.
    """
    try:
        with closing(IoctlEthtool(name)) as ethtool:
            features = ethtool.get_features()
            if word not in features:
                return None
            return Feature(
                active=bool(features.is_active(word)), changeable=bool(features.is_available(word))
            )
    except (EthtoolError, OSError):
        return None


def private_flag_active(name: str, flag: str) -> bool | None:
    """Whether a flag of the driver's own is on (``ethtool --show-priv-flags``).

    Returns:
        ``None`` if the driver does not have it or does not say.
    """
    value = _Value(cmd=_ETHTOOL_GPFLAGS)
    try:
        with closing(IoctlEthtool(name)) as ethtool:
            flags = ethtool.get_stringset(_ETH_SS_PRIV_FLAGS)
        request(name, value)
    except (EthtoolError, OSError):
        return None
    return bool(value.data >> flags.index(flag) & 1) if flag in flags else None
