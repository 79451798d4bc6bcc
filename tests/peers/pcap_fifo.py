"""A capture file that never ends: DPDK's net_pcap port on FIFOs, so that a test can verify every byte.

testpmd forwards between this port and another one. What comes back is what was sent, in order, or the
frame that is not says which one it should have been.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from guestwire.testing import FrameStream
from peers.testpmd import Testpmd

# pcap-savefile(5): little-endian, times in microseconds, version 2.4, LINKTYPE_ETHERNET.
FILE_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
RECORD = struct.Struct("<IIII")  # seconds, microseconds, captured length, original length

# net_pcap waits in the middle of a burst for the rest of it.
BURST = 32
PATIENCE_SECONDS = 20.0


class PcapFifo:
    """Frames into a testpmd port and out of it, verified as they come.

    To be entered before testpmd starts, which then waits for it, and left after testpmd has ended: only
    that empties the last block of its file.

    Args:
        folder: for the two FIFOs.
        stream: the frames.
        count: how many of them; a multiple of a burst of 32.
        window: how many may be on their way at most, at least a burst; None for as many as find room.

    Attributes:
        vdev: the port, for ``--vdev``.
        error: what was wrong with a frame; raised by `wait`.
    """

    def __init__(self, folder: Path, stream: FrameStream, count: int, window: int | None = None) -> None:
        assert count % BURST == 0
        assert window is None or window >= BURST
        self._in, self._out = folder / "in.pcap", folder / "out.pcap"
        self.vdev = f"net_pcap0,rx_pcap={self._in},tx_pcap={self._out}"
        self.error: BaseException | None = None
        self._stream, self._count, self._window = stream, count, window
        self._arrived = threading.Condition()
        self._closing = False
        self._threads = [threading.Thread(target=body, daemon=True) for body in (self._write, self._read)]

    def _write(self) -> None:
        with contextlib.suppress(BrokenPipeError), self._in.open("wb", buffering=0) as file:
            file.write(FILE_HEADER)
            for _ in range(self._count // BURST):
                if not self._may_send():
                    return
                frames = self._stream.take(BURST)
                file.write(b"".join(RECORD.pack(0, 0, len(f), len(f)) + f for f in frames))

    def _may_send(self) -> bool:
        """Wait until another burst fits into the window; return whether to go on."""
        if self._window is None:
            return not self._closing
        most = self._window - BURST
        with self._arrived:
            self._arrived.wait_for(lambda: self._closing or self._stream.sent - self._stream.received <= most)
        return not self._closing

    def _read(self) -> None:
        with self._out.open("rb") as file:
            try:
                self._verify(file)
            except BaseException as error:
                self.error = error
            self._close()
            while file.read1():  # testpmd would not end if nobody read
                pass

    def _verify(self, file: io.BufferedReader) -> None:
        file.read(len(FILE_HEADER))
        pending = bytearray()
        while self._stream.received < self._count:
            data = file.read1()
            assert data, f"the file ends after {self._stream.received} of {self._count} frames"
            pending += data
            self._accept(pending)
            with self._arrived:
                self._arrived.notify_all()
        assert not pending, "more came back than was sent"

    def _accept(self, pending: bytearray) -> None:
        """Verify the frames of all complete records, and remove these."""
        start = 0
        while (body := start + RECORD.size) <= len(pending):
            end = body + RECORD.unpack_from(pending, start)[2]
            if end > len(pending):
                break
            self._stream.accept(pending[body:end])
            start = end
        del pending[:start]

    def _close(self) -> None:
        """Let the writer end: testpmd reads the end of its file, and can be told to stop."""
        with self._arrived:
            self._closing = True
            self._arrived.notify_all()

    def wait(self, pmd: Testpmd, port: int = 0) -> None:
        """Wait until testpmd has written all frames to this port, as long as some come.

        Raises:
            VerificationError: a frame was changed, repeated or late.
        """
        written, since = 0, time.monotonic()
        while written < self._count:
            now = pmd.stats(port)["TX-packets"]
            if now > written:
                written, since = now, time.monotonic()
            if self.error is None and time.monotonic() - since > PATIENCE_SECONDS:
                self.error = AssertionError(f"only {written} of {self._count} frames came back")
            if self.error is not None:
                self._close()
                raise self.error
            time.sleep(0.05)

    def __enter__(self) -> Self:
        for path in (self._in, self._out):
            os.mkfifo(path)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()
        for path in (self._in, self._out):
            # Whoever still waits for testpmd to open the other end goes on, and finds it closed.
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        for path in (self._in, self._out):
            path.unlink()
        if error is None and self.error is not None:
            raise self.error
