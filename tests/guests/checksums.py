"""Who sees a wrong checksum: tcpdump, and a kernel's own counters."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from backend.process import wait_until
from guestwire.testing.namespaces import NamedNamespace

BAD = re.compile(r"incorrect|bad \w+ cksum|bad cksum|wrong")
GOOD = re.compile(r"cksum 0x\w+ \(correct\)|sum ok\]")
PCAP_HEADER = 24
COUNTERS = "cat /proc/net/snmp /proc/net/snmp6"


class Watch:
    """tcpdump on what an interface receives; inside, it looks.

    Args:
        namespace: where the interface is.
        interface: its name.
        folder: for what it sees.
        room: bytes of frames that it can be behind: all that is sent, if it must see all on a busy machine.

    Attributes:
        bad: lines about frames with a wrong checksum, once it is over.
        good: how many checksums were right.
    """

    def __init__(self, namespace: NamedNamespace, interface: str, folder: Path, room: int = 64 << 20) -> None:
        self._namespace, self._interface, self._room = namespace, interface, room
        self._file, self._log = folder / "seen.pcap", folder / "tcpdump.log"
        self._process: subprocess.Popen[bytes]
        self.bad: list[str] = []
        self.good = 0

    def __enter__(self) -> Self:
        self._log.unlink(missing_ok=True)
        # What the host sends is not looked at: it has no checksum yet.
        looking = ["tcpdump", "-i", self._interface, "-Q", "in", "-Z", "root", "-B", str(self._room >> 10)]
        self._process = self._namespace.spawn([*looking, "-n", "-U", "-w", self._file], self._log)
        wait_until(lambda: "listening on" in self._log.read_text() or self._process.poll() is not None)
        assert self._process.poll() is None, self._log.read_text()
        return self

    @property
    def frames_seen(self) -> bool:
        """Whether a frame was seen already; tcpdump gets them in batches, and loses the last at its end."""
        return self._file.stat().st_size > PCAP_HEADER

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(30)
            if error is None:
                self._read()
        finally:
            self._process.kill()
            self._process.wait()
            self._file.unlink(missing_ok=True)

    def _read(self) -> None:
        command = ["tcpdump", "-n", "-vv", "-r", self._file]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as reader:
            assert reader.stdout is not None
            for line in reader.stdout:
                if BAD.search(line):
                    self.bad.append(line)
                elif GOOD.search(line):
                    self.good += 1


def errors(counters: str) -> dict[str, int]:
    """Which checksums a kernel found wrong, and how often, from what `COUNTERS` prints."""
    found = {name: int(value) for name, value in re.findall(r"^(\w*InCsumErrors)\s+(\d+)$", counters, re.M)}
    tables = re.findall(r"^(\w+): ([A-Z].*)\n\1: (.*)$", counters, re.M)
    for protocol, names, values in tables:
        named = dict(zip(names.split(), values.split(), strict=True))
        if "InCsumErrors" in named:
            found[f"{protocol}InCsumErrors"] = int(named["InCsumErrors"])
    assert {"TcpInCsumErrors", "UdpInCsumErrors", "Udp6InCsumErrors"} <= found.keys()
    return {name: count for name, count in found.items() if count}
