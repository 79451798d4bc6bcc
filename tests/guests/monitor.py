"""QEMU's monitor: what a virtqueue of a device looks like in the guest's memory."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Monitor:
    """A connection to QEMU's monitor protocol, on the socket that ``arguments`` make.

    Args:
        path: of the socket.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile()
        self.execute("qmp_capabilities")

    @staticmethod
    def arguments(path: Path) -> list[str]:
        """QEMU's arguments for a monitor there."""
        return ["-qmp", f"unix:{path},server=on,wait=off"]

    def execute(self, command: str, **arguments: Any) -> Any:
        """Execute a command, and return its result."""
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            answer = json.loads(self._lines.readline())
            assert "error" not in answer, (request, answer)
            if "return" in answer:
                return answer["return"]

    def outstanding(self, device: str, queue: int) -> int:
        """How many chains of a split ring the driver has made available and not got back."""
        path = f"/machine/peripheral/{device}/virtio-backend"
        # Not x-query-virtio-queue-status: that sends GET_VRING_BASE, which stops the ring.
        places = self.execute("x-query-virtio-vhost-queue-status", path=path, queue=queue)
        available, used = (self._u16(places[f"{ring}-phys"] + 2) for ring in ("avail", "used"))
        return (available - used) & 0xFFFF

    def _u16(self, address: int) -> int:
        text = self.execute("human-monitor-command", **{"command-line": f"xp /1hx {address:#x}"})
        return int(re.findall(r"0x([0-9a-f]+)\s*$", text)[0], 16)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._socket.close()
