"""What registering memory costs, asked of the kernel."""

from __future__ import annotations

import mmap
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from guestwire.datapath.window import Window
from guestwire.errors import HostError
from guestwire.host.pinned_memory import registration_cost
from guestwire.ports import geometry
from guestwire.ports.budget import PinnedBudget
from guestwire.ports.modes import Plan
from guestwire.ports.pinning import window_bytes
from guestwire.ports.registration import Registration
from guestwire.testing.memory import SharedMemory
from guestwire.testing.wire import Wire

pytestmark = pytest.mark.root

MIB = 1 << 20
BOUNCE_FRAMES = 64

# Makes a socket, gives up all rights, and registers all but a page of what it may lock, all, and a page more.
REGISTER = """
import ctypes, mmap, os, resource, struct, sys
from guestwire.host import af_xdp
uid, limit = map(int, sys.argv[1:])
sockets = [(af_xdp.open_socket(), limit + pages * 4096) for pages in (1, 0)]
os.setresuid(uid, uid, uid)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
area = mmap.mmap(-1, limit + 4096)
for xdp_socket, size in sockets:
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    registration = struct.pack("=QQIIII", address, size, 4096, 0, af_xdp.XDP_UMEM_UNALIGNED_CHUNK_FLAG, 0)
    try:
        xdp_socket.setsockopt(af_xdp.SOL_XDP, af_xdp.XDP_UMEM_REG, registration)
        print("registered")
    except OSError as error:
        print(os.strerror(error.errno))
"""


def buffer_pools() -> dict[str, int]:
    """The larger arrays of all buffer pools, by address, in bytes without their guard page."""
    lines = Path("/proc/vmallocinfo").read_text().splitlines()
    pools = (re.match(r"(\S+)\s+(\d+) xp_create_and_assign_umem", line) for line in lines)
    return {pool[1]: int(pool[2]) - mmap.PAGESIZE for pool in pools if pool}


def window_of(memory: SharedMemory) -> Window:
    table = [(r.guest_address, r.user_address, r.size, r.fd, r.mmap_offset) for r in memory.regions]
    return Window(table, bounce_frames=BOUNCE_FRAMES)


def test_the_kernel_makes_the_arrays_that_were_foreseen() -> None:
    plan = Plan("direct", geometry.copy_mode(1500))
    with Wire() as wire, SharedMemory(192 * MIB) as memory:
        window = window_of(memory)
        budget = PinnedBudget().for_guest("vm")

        def bound() -> Registration:
            made = Registration(
                window, plan, wire.interface, 0, ring_size=64, rx_size=64, budget=budget, released_at=0.0
            )
            made.bind(socket.if_nametoindex(wire.interface))
            return made

        before = buffer_pools()
        registration = wire.near.call(bound)
        try:
            made = [size for place, size in buffer_pools().items() if place not in before]
        finally:
            registration.close()
        cost = registration_cost(window.size, plan.geometry.chunk, zero_copy=False)
        assert budget.held == 0
        # Without a guest, doctor can only guess how its memory will be laid out.
        assert 0 <= window_bytes(memory.size, BOUNCE_FRAMES) - window.size <= 2 * MIB
        window.close()
    # Others may make pools at the same time; this one's array may end in a huge page that is not full.
    assert any(0 <= size - cost.largest_array_bytes < 2 * MIB for size in made), (made, cost)


def test_the_kernel_counts_pages_as_foreseen() -> None:
    limit = registration_cost(MIB, 4096, zero_copy=False).pinned_bytes
    uid = 0x40000000 + os.getpid()  # pages are counted for each user: one that nobody else is
    child = [sys.executable, "-c", REGISTER, str(uid), str(limit)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["No buffer space available", "registered"]


def test_over_budget_nothing_is_registered() -> None:
    plan = Plan("direct", geometry.copy_mode(1500))
    with SharedMemory(2 * MIB) as memory:
        window = window_of(memory)
        budget = PinnedBudget(None, {"vm": 2 * window.size - 1}).for_guest("vm")

        def register() -> Registration:
            return Registration(
                window, plan, "eth7", 0, ring_size=64, rx_size=64, budget=budget, released_at=0.0
            )

        first = register()
        assert budget.held == first.pinned_bytes == window.size
        with pytest.raises(HostError, match=r"guest vm holds .* MiB of the .* MiB that it may") as caught:
            register()
        assert "max_pinned" in str(caught.value.remedy)
        assert budget.held == window.size
        first.close()
        register().close()
        assert budget.held == 0
        window.close()
