"""One guest with an interface on every port that a module's tests want, since a boot takes long.

Each interface has a network and a backend of its own. It has no address until a test gives it one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from backend.process import Backend
from guests.networks import TapHost
from guestwire.testing.guests import Guest, QemuGuest, UmlGuest, VhostUserDevice
from guestwire.testing.wire import Wire

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)

KINDS: dict[str, type[UmlGuest | QemuGuest]] = {"uml": UmlGuest, "qemu": QemuGuest}


@dataclass(frozen=True)
class Place:
    """Where an interface will be.

    Attributes:
        port: what ``guestwire run`` calls it.
        network: makes the network that the port is on.
        options: properties of QEMU's device.
        reconnect_ms: see `VhostUserDevice`.
    """

    port: str
    network: Callable[[], TapHost | Wire] = Wire
    options: Mapping[str, str] = field(default_factory=dict)
    reconnect_ms: int | None = None


@dataclass(frozen=True)
class Attached:
    """An interface of a guest, and who is at its other side."""

    guest: Guest
    name: str
    network: TapHost | Wire
    backend: Backend

    @contextlib.contextmanager
    def configured(self) -> Iterator[None]:
        """Give it its address for a while: on each network it is the same one."""
        address = f"{self.network.guest_address}/{self.network.prefix_length}"
        self.guest.check(f"ip addr add {address} dev {self.name} && ip link set {self.name} up")
        try:
            yield
        finally:
            self.guest.check(f"ip link set {self.name} down && ip addr flush dev {self.name}")


@contextlib.contextmanager
def booted(
    kind: str, places: Mapping[Key, Place], folder: Path, **options: Any
) -> Iterator[Mapping[Key, Attached]]:
    """Boot a guest with an interface at each of some places.

    Args:
        kind: which of `KINDS`.
        places: where, by whatever the test calls them.
        folder: for files of the backends.
        options: more for that kind of guest.
    """
    with contextlib.ExitStack() as stack:
        served: list[tuple[TapHost | Wire, Backend]] = []
        devices = []
        for number, place in enumerate(places.values()):
            network = stack.enter_context(place.network())
            own = folder / str(number)
            own.mkdir()
            backend = stack.enter_context(Backend(own, place.port, namespace=network.near.name))
            served.append((network, backend))
            devices.append(
                VhostUserDevice(backend.socket, options=place.options, reconnect_ms=place.reconnect_ms)
            )
        guest = stack.enter_context(KINDS[kind](devices, **{"memory_mib": 256, **options}))
        interfaces = [Attached(guest, f"eth{number}", *of) for number, of in enumerate(served)]
        yield dict(zip(places, interfaces, strict=True))


@contextlib.contextmanager
def booted_on_demand(boot: Callable[[str], AbstractContextManager[T]]) -> Iterator[Callable[[str], T]]:
    """Return what boots a guest of a kind when it is first asked for, and keeps it until the end."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda kind: stack.enter_context(boot(kind)))
