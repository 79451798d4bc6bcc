"""What is compared in tcp.py: a guest, and what moves its frames to an iperf3 server in a namespace."""

from __future__ import annotations

import contextlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cpu_time import threads_cpu_seconds, tree, tree_cpu_seconds
from tcp_results import Window

from guests.networks import TapHost
from guestwire.testing.backend import BackendProcess
from guestwire.testing.channel import ChannelError
from guestwire.testing.guests import Guest, QemuGuest, UmlGuest, VhostUserDevice
from guestwire.testing.processes import cpu_seconds
from guestwire.testing.wire import Wire

Kind = Literal["qemu", "uml"]
Direction = Literal["tx", "rx"]

PROGRAMS = ("iperf3", "ethtool")
VCPU = "CPU "
"""How QEMU names the threads that run the guest (-name debug-threads=on)."""
NAMED_THREADS = ("-name", "guest,debug-threads=on")
MAC = "52:54:00:00:00:02"


@dataclass(frozen=True)
class Setup:
    """What all contenders have in common.

    Attributes:
        folder: for logs.
        guest_cpu: runs the guest: QEMU's virtual CPU, or all of User-Mode Linux.
        host_cpu: runs the rest: guestwire, QEMU's other threads, iperf3.
        seconds: the length of a window.
    """

    folder: Path
    guest_cpu: int
    host_cpu: int
    seconds: float


class Contender(ABC):
    """A guest on a network, with an iperf3 server at the other end; as a context it is up and connected.

    Args:
        name: in the results.
        kind: of the guest.
        setup: common to all.
    """

    interface = "eth0"

    def __init__(self, name: str, kind: Kind, setup: Setup) -> None:
        self.name, self.kind, self._setup = name, kind, setup
        self._guest: Guest
        self._server_pid: int
        self._backend: BackendProcess | None = None

    @abstractmethod
    def _guest_and_network(self, stack: contextlib.ExitStack) -> tuple[Guest, TapHost | Wire]:
        """Make the network, start what moves frames, boot the guest."""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Boot the guest and connect it."""
        with contextlib.ExitStack() as stack:
            self._guest, network = self._guest_and_network(stack)
            address = f"{network.guest_address}/{network.prefix_length}"
            self._guest.check(f"ip addr add {address} dev {self.interface}; ip link set {self.interface} up")
            if isinstance(network, TapHost):
                network.connect()
            self._guest.wait_until(f"ping -c 1 -W 1 {network.peer_address}")
            server = network.far.spawn(["iperf3", "-s"], self._setup.folder / network.far.name)
            stack.callback(server.wait)
            stack.callback(server.kill)
            self._server_pid = server.pid
            self._client = f"iperf3 -c {network.peer_address} -i 0 -J"
            self._guest.wait_until(f"{self._client} -n 1M >/dev/null")
            self._pin()
            yield

    def _pin(self) -> None:
        others = [self._backend.pid] if self._backend else []
        if self.kind == "uml":
            _pin_threads(tree(self._guest.pid), {self._setup.guest_cpu})
        else:
            others.append(self._guest.pid)
        _pin_threads(others, {self._setup.host_cpu})
        if self.kind == "qemu":
            for thread in _threads(self._guest.pid):
                if (thread / "comm").read_text().startswith(VCPU):
                    os.sched_setaffinity(int(thread.name), {self._setup.guest_cpu})

    def measure(self, number: int, direction: Direction) -> Window:
        """Let the guest send (tx) or receive (rx) for the length of a window."""
        counted = self._counters(direction)
        frames = self._guest_frames(direction)
        cpu, start = self._cpu_seconds(), time.monotonic()
        reverse = "-R" if direction == "rx" else ""
        answer = self._guest.check(
            f"{self._client} -t {self._setup.seconds:g} {reverse}", 4 * self._setup.seconds + 30
        )
        elapsed = time.monotonic() - start
        used = {who: round(after - cpu[who], 2) for who, after in self._cpu_seconds().items()}
        frames = self._guest_frames(direction) - frames
        received = _received(answer)
        return Window(
            round=number,
            contender=self.name,
            direction=direction,
            bits_per_second=round(received["bits_per_second"]),
            bytes=received["bytes"],
            seconds=round(elapsed, 3),
            cpu_seconds=used,
            guest_frames=frames,
            counters=_grown(counted, self._counters(direction)),
        )

    def features(self) -> list[str]:
        """The features that guest and backend have agreed on, where the backend tells."""
        return [] if self._backend is None else list(self._backend.status()["features"])

    def _guest_frames(self, direction: Direction) -> int:
        """Frames that the guest's driver has moved, large ones counted once."""
        return int(self._guest.check(f"cat /sys/class/net/{self.interface}/statistics/{direction}_packets"))

    def _counters(self, direction: Direction) -> dict[str, Any]:
        """guestwire's counters in one direction; empty for another backend."""
        if self._backend is None:
            return {}
        counters = self._backend.status()["counters"][direction]
        assert isinstance(counters, dict)
        return counters

    def _cpu_seconds(self) -> dict[str, float]:
        """CPU seconds by who used them; see README.md."""
        used = {"peer": cpu_seconds(self._server_pid)}
        if self._backend is not None:
            used["backend"] = self._backend.cpu_seconds
        if self.kind == "uml":
            return used | {"guest": tree_cpu_seconds(self._guest.pid)}
        threads = threads_cpu_seconds(self._guest.pid)
        used["guest"] = sum(used for name, used in threads if name.startswith(VCPU))
        used["emulator"] = sum(used for name, used in threads if not name.startswith(VCPU))
        return used


class Guestwire(Contender):
    """A guest behind guestwire.

    Args:
        name: see `Contender`.
        kind: see `Contender`.
        setup: see `Contender`.
        port: the port, with the network's interface as {}.
    """

    def __init__(self, name: str, kind: Kind, setup: Setup, port: str) -> None:
        super().__init__(name, kind, setup)
        self._port = port

    def _guest_and_network(self, stack: contextlib.ExitStack) -> tuple[Guest, TapHost | Wire]:
        network = stack.enter_context(TapHost() if self._port.startswith("tap:") else Wire())
        port = self._port.format(network.interface)
        self._backend = stack.enter_context(BackendProcess(port, namespace=network.near))
        device = VhostUserDevice(self._backend.socket_path, mac=MAC)
        if self.kind == "uml":
            return stack.enter_context(UmlGuest([device], programs=PROGRAMS)), network
        guest = QemuGuest([device], programs=PROGRAMS, accelerator="tcg", arguments=NAMED_THREADS)
        return stack.enter_context(guest), network


class OwnTap(Contender):
    """A guest whose emulator moves the frames itself, to and from a TAP interface."""

    @property
    def interface(self) -> str:  # type: ignore[override]
        """What the guest calls it: User-Mode Linux' own driver has a name of its own."""
        return "vec0" if self.kind == "uml" else "eth0"

    def _guest_and_network(self, stack: contextlib.ExitStack) -> tuple[Guest, TapHost]:
        network = stack.enter_context(TapHost())
        place = network.near.name
        guest: Guest
        if self.kind == "uml":
            option = f"vec0:transport=tap,ifname={network.interface},depth=128,gro=1"
            guest = UmlGuest(kernel_options=option, programs=PROGRAMS, namespace=place)
        else:
            own = f"tap,id=own,ifname={network.interface},script=no,downscript=no,vhost=off"
            # The interrupts that the other contender's device has, see QemuGuest.
            device = f"virtio-net-pci,netdev=own,mac={MAC},romfile=,vectors=0"
            arguments = [*NAMED_THREADS, "-netdev", own, "-device", device]
            guest = QemuGuest(accelerator="tcg", arguments=arguments, programs=PROGRAMS, namespace=place)
        return stack.enter_context(guest), network


def _received(answer: str) -> dict[str, Any]:
    """What iperf3's receiver got."""
    result = json.loads(answer)
    if "error" in result:
        raise ChannelError(f"in the guest, iperf3 failed: {result['error']}")
    received = result["end"]["sum_received"]
    assert isinstance(received, dict)
    return received


def _grown(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """By how much counters have grown; those that have not are left out."""
    grown: dict[str, Any] = {}
    for name, value in new.items():
        before = old.get(name, {} if isinstance(value, dict) else 0)
        change = _grown(before, value) if isinstance(value, dict) else value - before
        if change:
            grown[name] = change
    return grown


def _threads(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def _pin_threads(pids: Sequence[int], cpus: set[int]) -> None:
    for pid in pids:
        for thread in _threads(pid):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), cpus)
