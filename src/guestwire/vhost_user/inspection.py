"""Which of a frontend's files may enter this process: another process looks first.

A file may lie on a file system that the frontend runs itself (FUSE). Whatever asks such a file system waits
for as long as that likes, and cannot be killed meanwhile: a write, a look at the file's status, and also the
close of a descriptor, even at a process's death. So such a descriptor must never be ours. A helper process
(`inspection_helper`) peeks at a message that has files with it, and we take them only when it has said that
all are harmless; otherwise the kernel drops them with the message, unopened.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import subprocess
import sys
from dataclasses import dataclass

from guestwire.errors import HostError
from guestwire.vhost_user import inspection_helper

_MOST_STUCK = 4  # threads of the helper that wait for one guest's files
_CLOSE_SECONDS = 0.5  # takes no file but a malicious one
_LONGEST_ANSWER = 1 << 14  # the name of a file is shorter


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the files of a message are.

    Attributes:
        count: how many there are.
        lost: whether there are more, which could not be opened, and so not be looked at.
        refused: one that is not harmless, by its name; empty if there is none.
    """

    count: int
    lost: bool
    refused: str

    @property
    def harmless(self) -> bool:
        """Whether they may enter this process."""
        return not self.lost and not self.refused


class _Helper:
    """The helper process: there is one, started when it is needed, and it ends when this process does."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def line(self) -> socket.socket:
        """Return a connection to a thread of the helper.

        Raises:
            OSError: it cannot be started, or this process has no descriptor left.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                try:
                    self._hand_over(theirs)
                except ConnectionError:  # it has died
                    self._control = None
                    self._hand_over(theirs)
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        return ours

    def _hand_over(self, line: socket.socket) -> None:
        if self._control is None:
            self._control = self._start()
        socket.send_fds(self._control, [b"line"], [line.fileno()])

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # A session of its own: a terminal's Ctrl-C is not meant for it. No output: whoever reads ours to
            # its end is not to wait for a helper that cannot end.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", inspection_helper.__file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        return ours


_helper = _Helper()


def start_helper() -> None:
    """Start the helper ahead, so that no guest has to wait for it; if that fails, it is tried again then."""
    with contextlib.suppress(OSError):
        _helper.line().close()


class Inspector:
    """Has the files of one guest's frontends looked at, those of one message at a time."""

    def __init__(self) -> None:
        self._line: socket.socket | None = None
        self._stuck: list[socket.socket] = []
        self._verdict: Verdict | None = None  # on files that have not been read yet

    async def inspect(self, connection: socket.socket, size: int) -> Verdict:
        """Look at the next files of a connection, and leave them there.

        They come with some of the next bytes, or only behind them: the kernel does not say. Once they have
        been read, or the connection is closed, `forget` is to be called.

        Args:
            connection: a Unix stream socket.
            size: how many bytes; they have arrived.

        Raises:
            HostError: the files cannot be looked at.
        """
        if self._verdict is None:
            self._verdict = await self._ask(connection, size)
        return self._verdict

    async def _ask(self, connection: socket.socket, size: int) -> Verdict:
        self._stuck = [line for line in self._stuck if not _is_through(line)]
        try:
            if self._line is None:
                self._line = self._open_line()
            socket.send_fds(self._line, [str(size).encode()], [connection.fileno()])
        except ConnectionError as error:
            raise self._died() from error
        except OSError as error:
            self._drop_line()
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise out_of_descriptors() from error
            raise HostError(
                f"the process that looks at a frontend's files does not run: {error.strerror}",
                "let this process start another (TasksMax= and SystemCallFilter= in a systemd unit)",
            ) from error
        try:
            count, lost, refused = (await self._answer()).split(b" ", 2)
        except asyncio.CancelledError:
            self._drop_line()  # its answer is for nobody
            raise
        return Verdict(int(count), lost == b"1", refused.decode(errors="replace"))

    async def forget(self) -> None:
        """Have done with the files; what was refused is closed, and only the helper waits if that takes long.

        Raises:
            HostError: the helper has died.
        """
        verdict, self._verdict = self._verdict, None
        line = self._line
        if verdict is None or verdict.harmless or line is None:
            return
        try:
            line.send(b"close")
            await asyncio.wait_for(self._answer(), _CLOSE_SECONDS)
        except (TimeoutError, asyncio.CancelledError) as error:
            self._stuck.append(line)
            self._line = None
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _answer(self) -> bytes:
        assert self._line is not None
        answer = await asyncio.get_running_loop().sock_recv(self._line, _LONGEST_ANSWER)
        if not answer:
            raise self._died()
        return answer

    def _died(self) -> HostError:
        self._drop_line()
        return HostError("the process that looks at a frontend's files has died", "connect again")

    def _open_line(self) -> socket.socket:
        if len(self._stuck) >= _MOST_STUCK:
            raise HostError(
                f"the files of {len(self._stuck)} messages of this guest's frontends cannot be closed: "
                "their file system does not answer",
                "see that the file system answers, or share memory (-object memory-backend-memfd,share=on)",
            )
        return _helper.line()

    def _drop_line(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None

    def rest(self) -> None:
        """Keep nothing open until the next frontend comes, but for what the helper waits for."""
        self._drop_line()

    def close(self) -> None:
        """Look at nothing more."""
        self._drop_line()
        for line in self._stuck:
            line.close()
        self._stuck = []


def _is_through(line: socket.socket) -> bool:
    """Tell whether a thread of the helper no longer waits; then it is let go, too."""
    try:
        line.recv(_LONGEST_ANSWER)
    except BlockingIOError:
        return False
    line.close()
    return True


def out_of_descriptors() -> HostError:
    """Return what to say when a frontend's files did not fit into this process."""
    return HostError(
        "a frontend's file descriptors were lost: this process may not open any more",
        "raise the limit: ulimit -n 65536, or LimitNOFILE= in a systemd unit",
    )
