"""Several guests of one process on one interface, and the far end of its wire, which tells them apart."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from backend.process import Backend, wait_until
from guestwire.host.interface import AttachedProgram, attached_programs
from guestwire.testing import FakeGuest, FrameStream, Wire
from net.queues import address_of
from net.traffic import BURST, IDENTIFIER, peer_socket, rebind_guest

QUEUES = 4
LEAVING = 0x100  # added to a guest's number


class Tenant:
    """A guest on one queue of the wire, and what the far end exchanges with it."""

    def __init__(self, number: int, guest: FakeGuest) -> None:
        self.number, self.guest = number, guest
        self.leaving = FrameStream((60, 1514), identifier=LEAVING + number)
        self.at(number)

    def at(self, queue: int) -> None:
        """Have what it is sent from now on come to this queue."""
        self.arriving = FrameStream((60, 1514), identifier=self.number, destination=address_of(queue))

    def receive(self) -> None:
        while (frame := self.guest.pair.receive(timeout=0, wait=False)) is not None:
            self.arriving.accept(frame.data)


class Tenants:
    """Guests named vm0, vm1 and so on, each on the queue of its number, and the far end."""

    def __init__(self, backend: Backend, peer: socket.socket, guests: Sequence[FakeGuest]) -> None:
        self.backend, self._peer = backend, peer
        self.all = [Tenant(number, guest) for number, guest in enumerate(guests)]

    def exchange(self, *tenants: Tenant) -> None:
        """Have a burst cross each way for each of them: all of it, unchanged."""
        for tenant in tenants:
            for frame in tenant.arriving.take(BURST):
                self._peer.send(frame)
            tenant.guest.pair.send_stream(tenant.leaving, BURST, drain=False)

        def complete() -> bool:
            with contextlib.suppress(BlockingIOError):
                while True:
                    frame = self._peer.recv(65536)
                    self.all[int.from_bytes(frame[IDENTIFIER], "little") - LEAVING].leaving.accept(frame)
            for tenant in tenants:
                tenant.receive()
            return all(t.arriving.received == t.arriving.sent for t in tenants) and all(
                t.leaving.received == t.leaving.sent for t in tenants
            )

        wait_until(complete)

    def during(self, function: Callable[[], object], *tenants: Tenant) -> None:
        """Call a function while bursts cross for these, and at least once before and after."""
        with ThreadPoolExecutor(1) as pool:
            self.exchange(*tenants)
            done = pool.submit(function)
            while not done.done():
                self.exchange(*tenants)
            self.exchange(*tenants)
        done.result()

    def rebind(self, tenant: Tenant, port: str) -> None:
        """Have a guest bound to another port.

        Raises:
            GuestwireError: it is refused.
        """
        rebind_guest(self.backend, f"vm{tenant.number}", port)


@contextlib.contextmanager
def tenants(folder: Path, wire: Wire, count: int, options: str = "", settings: str = "") -> Iterator[Tenants]:
    """Have one process serve so many guests.

    Args:
        folder: for its files.
        wire: between `queues_by_address`.
        count: how many.
        options: more for each port.
        settings: more lines for each guest's table.
    """
    sockets = [folder / f"vm{number}.sock" for number in range(count)]
    file = folder / "guests.toml"
    file.write_text(
        "".join(
            f"[[guest]]\nsocket_path = '{path}'\nport = 'xdp:{wire.interface},queue={queue}{options}'\n"
            f"{settings}\n"
            for queue, path in enumerate(sockets)
        )
    )
    with (
        Backend(folder, None, [str(file)], namespace=wire.near.name, sockets=sockets) as backend,
        peer_socket(wire) as peer,
        contextlib.ExitStack() as guests,
    ):
        yield Tenants(backend, peer, [guests.enter_context(FakeGuest(path)) for path in sockets])


def programs(wire: Wire) -> tuple[AttachedProgram, ...]:
    index = wire.near.call(lambda: socket.if_nametoindex(wire.interface))
    return wire.near.call(lambda: attached_programs(index))
