"""Contenders on a veth pair: the backend drives one end by AF_XDP, frames go to the other or come from it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from backends import Place, Program
from case import WORKS, Case
from contenders import Contender, Forwarding, forwarding

from guestwire.host import bpf
from guestwire.testing import processes
from guestwire.testing.wire import Wire

GENERATOR = Path(__file__).with_name("generator.py")
BURST, GAP_US = 64, 50
"""What the generator sends at once, and how long it then sleeps: what leaves the guest some of its CPU."""

XDP_DROP = 1  # linux/bpf.h
NATIVE = 1 << 2  # XDP_FLAGS_DRV_MODE, linux/if_link.h
RECEIVED, SENT = 1, 9  # columns of /proc/net/dev
TICKS = os.sysconf("SC_CLK_TCK")


def softirq_seconds(cpu: int) -> float:
    """Return the time that a CPU has spent in softirqs (proc(5))."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *times = line.split()
        if name == f"cpu{cpu}":
            return int(times[6]) / TICKS
    raise AssertionError(f"/proc/stat has no cpu{cpu}")


class OverVeth(Contender):
    """A backend between a guest and one end of a veth pair.

    Args:
        inner: the backend and its guest.
        case: what they do.
        place: where.
        wire: the pair.
        counted: counts the far end's frames in one direction.
    """

    def __init__(
        self, inner: Forwarding, case: Case, place: Place, wire: Wire, counted: Callable[[int], int]
    ) -> None:
        super().__init__(inner.name)
        self._inner, self._place, self._wire, self._counted = inner, place, wire, counted
        self._generates = WORKS[case.work].guest == "rxonly"
        self._generator: subprocess.Popen[bytes] | None = None

    def start(self, size: int) -> None:
        self._inner.start(size)
        if self._generates:
            command = [sys.executable, GENERATOR, self._wire.peer_interface, size, BURST, GAP_US]
            log = self._place.folder / "generator.log"
            self._generator = self._wire.far.spawn([*map(str, command), str(self._place.guest_cpu)], log)
            end = time.monotonic() + 10
            before = self._counted(SENT)
            while self._counted(SENT) == before and time.monotonic() < end:
                time.sleep(0.01)

    def stop(self) -> dict[str, float]:
        self.close()
        return self._inner.stop()

    def close(self) -> None:
        """End the generator, if it runs."""
        if self._generator is not None:
            processes.stop(self._generator)
            self._generator = None

    def measure(self, seconds: float) -> dict[str, float]:
        cpus = (self._place.backend_cpu, self._place.guest_cpu)
        start, softirq = time.monotonic(), [softirq_seconds(cpu) for cpu in cpus]
        offered = self._counted(SENT)
        figures = self._inner.measure(seconds)
        took = time.monotonic() - start
        spent = [(softirq_seconds(cpu) - before) / took for cpu, before in zip(cpus, softirq, strict=True)]
        figures |= {"backend_softirq": round(spent[0], 3), "guest_softirq": round(spent[1], 3)}
        if self._generates:
            figures["offered_per_second"] = round((self._counted(SENT) - offered) / took)
        return figures


@contextlib.contextmanager
def over_veth(program: Program, driver: Program, case: Case, place: Place) -> Iterator[Contender]:
    """Have a backend and its guest up, on a veth pair between two namespaces of their own."""
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(Wire(complete_frames=False))
        stack.enter_context(_dropping(wire))
        counters = stack.enter_context(
            # What was opened in a namespace shows that one, wherever it is read.
            wire.far.call(lambda: Path("/proc/thread-self/net/dev").open(encoding="ascii"))  # noqa: SIM115
        )

        def counted(column: int) -> int:
            counters.seek(0)
            (line,) = (line for line in counters if line.strip().startswith(f"{wire.peer_interface}:"))
            return int(line.partition(":")[2].split()[column])

        place = replace(place, namespace=wire.near.name, interface=wire.interface)
        inner = stack.enter_context(forwarding(program, driver, case, place, lambda: counted(RECEIVED)))
        yield stack.enter_context(contextlib.closing(OverVeth(inner, case, place, wire, counted)))


@contextlib.contextmanager
def _dropping(wire: Wire) -> Iterator[None]:
    """Have the far end drop all that arrives, before the kernel makes a socket buffer of it."""
    # r0 = XDP_DROP; exit
    instructions = bpf.instruction(0xB7, destination=0, immediate=XDP_DROP) + bpf.instruction(0x95)
    program = bpf.load_program(
        instructions,
        program_type=bpf.PROGRAM_TYPE_XDP,
        attach_type=bpf.ATTACH_TYPE_XDP,
        flags=0,
        name=b"drop",
    )
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, program)
        link = wire.far.call(
            lambda: bpf.create_xdp_link(program, socket.if_nametoindex(wire.peer_interface), NATIVE)
        )
        stack.callback(os.close, link)
        yield
