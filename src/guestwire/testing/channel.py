"""Runs commands inside a test guest, over a serial line of its own.

The other end is the init script in ``initramfs.py``.  A request is a line ``SERIAL SECONDS SCRIPT``
with the script in base64; the answer is a line ``SERIAL STATUS``, the output in base64 lines, and a
line ``.``.  Base64 keeps whatever the script and its output hold apart from the framing.
"""

from __future__ import annotations

import base64
import itertools
import socket
import time
from dataclasses import dataclass

from guestwire.errors import GuestwireError

# A serial line has no flow control: what the guest's terminal cannot hold is lost.  It holds 4095
# bytes (N_TTY_BUF_SIZE in Linux' drivers/tty/n_tty.c), and is empty when a request is sent.
REQUEST_LIMIT = 4095


class ChannelError(GuestwireError):
    """The guest did not answer: it hangs, it is gone, or it never came up."""


@dataclass(frozen=True)
class Completed:
    """What a command in the guest left behind.

    Attributes:
        status: its exit status; 137 if it ran out of time and was killed.
        output: what it wrote to standard output and standard error.
    """

    status: int
    output: str


class Channel:
    """Our end of the line; ``guest_end`` is to be given to the guest's serial port.

    Args:
        connection: our end, where the guest's serial port has been connected to it by other means.
    """

    def __init__(self, connection: socket.socket | None = None) -> None:
        if connection is not None:
            self._socket = self.guest_end = connection
        else:
            self._socket, self.guest_end = socket.socketpair()
        self._received = bytearray()
        self._serials = itertools.count(1)

    def wait_ready(self, timeout: float) -> None:
        """Wait until the guest reads commands.

        Raises:
            ChannelError: the guest is gone, or not ready after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while self._line(deadline) != "ready":
            pass

    def run(self, script: str, seconds: float) -> Completed:
        """Run a shell script in the guest; one that takes longer than ``seconds`` is killed.

        Raises:
            ChannelError: the guest is gone or does not answer.
            ValueError: the script is longer than about 3000 bytes.
        """
        serial = str(next(self._serials))
        encoded = base64.b64encode(script.encode()).decode()
        request = f"{serial} {max(1, round(seconds))} {encoded}\n".encode()
        if len(request) > REQUEST_LIMIT:
            raise ValueError(f"a script of {len(script)} characters is too long for one request")
        # The guest enforces the limit; ours is for a guest that does not even manage that.
        deadline = time.monotonic() + 2 * seconds + 10
        try:
            self._socket.sendall(request)
        except OSError as error:
            raise ChannelError(f"the guest is gone: {error}") from error
        status = self._line(deadline).split()
        if len(status) != 2 or status[0] != serial:
            raise ChannelError(f"the guest answered {status} to request {serial}")
        lines = iter(lambda: self._line(deadline), ".")
        output = base64.b64decode("".join(lines)).decode(errors="replace")
        return Completed(int(status[1]), output)

    def release_guest_end(self) -> None:
        """Close our copy of the guest's end, so that the guest's death is seen as end of file."""
        self.guest_end.close()

    def close(self) -> None:
        """Close the line."""
        self._socket.close()
        self.guest_end.close()

    def _line(self, deadline: float) -> str:
        while b"\n" not in self._received:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise ChannelError("the guest did not answer in time")
            self._socket.settimeout(remaining)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                continue
            except OSError as error:
                raise ChannelError(f"the guest is gone: {error}") from error
            if not data:
                raise ChannelError("the guest is gone")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode(errors="replace").strip()
