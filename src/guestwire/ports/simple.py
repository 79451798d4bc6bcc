"""Ports that need nothing of the machine but files: echo, null and pcap."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import guestwire.datapath.port
from guestwire.datapath.echo import EchoPort
from guestwire.datapath.null import NullPort
from guestwire.datapath.pcap import PcapPort
from guestwire.datapath.window import Window
from guestwire.errors import ConfigurationError, HostError
from guestwire.ports import capture_file
from guestwire.ports.base import POLL_US, CoversItself, Port, PortStatus
from guestwire.ports.capture_file import Capture, CaptureError
from guestwire.virtio.features import GUEST_OFFLOADS, Feature

log = logging.getLogger(__name__)

LONGEST_MTU = 65535
MOST_QUEUE_PAIRS = 64
# All that segmentation.pyx can do.
SENT_OFFLOADS = (
    Feature.VIRTIO_NET_F_CSUM
    | Feature.VIRTIO_NET_F_HOST_TSO4
    | Feature.VIRTIO_NET_F_HOST_TSO6
    | Feature.VIRTIO_NET_F_HOST_ECN
    | Feature.VIRTIO_NET_F_HOST_USO
)


class SimplePort(CoversItself):
    """A port without an interface: ``echo`` or ``null``."""

    mtu = LONGEST_MTU
    max_queue_pairs = MOST_QUEUE_PAIRS
    bounce_frames = 0
    poll_us = POLL_US
    in_order = True
    interface_index = None
    link_up = True
    gone = False
    trouble = None
    disturbed = False

    def __init__(self, kind: str) -> None:
        self.kind = kind
        # What comes back from an echo is what its guest sent.
        self.offloads = SENT_OFFLOADS | GUEST_OFFLOADS if kind == "echo" else SENT_OFFLOADS

    def open(self, queue_pairs: int, leaving: Port | None = None) -> None:
        """Nothing to open."""

    def configure(self, leaving: Port | None = None) -> None:
        """Nothing to change."""

    def forget(self) -> None:
        """Nothing is prepared."""

    def prepare(self, pair: int, window: Window, queue_size: int, features: Feature) -> None:
        """Nothing takes long."""

    def attach(
        self, pair: int, window: Window, queue_size: int, features: Feature
    ) -> guestwire.datapath.port.Port:
        """Make the compiled half; it keeps nothing outside itself."""
        return EchoPort() if self.kind == "echo" else NullPort()

    def resume(self, pair: int) -> None:
        """Frames come by themselves."""

    def quiesce(self, pair: int) -> None:
        """Frames come only from the guest itself."""

    def detach(self, pair: int) -> None:
        """Nothing was kept."""

    def refresh(self) -> bool:
        """There is no interface to look at."""
        return False

    def announce(self, mac: bytes) -> None:
        """There is no network to tell."""

    def status(self) -> PortStatus:
        """Describe the port."""
        return PortStatus(self.kind)

    def close(self) -> None:
        """Nothing was opened."""


class PcapControl(CoversItself):
    """Frames from one capture file for the guest, frames from the guest to another.

    The input is delivered from its beginning each time the guest's rings start.

    Args:
        source: the capture file to deliver; empty for none.
        sink: the capture file to write, replaced if it exists; empty for none.
        repeat: deliver the input again and again, else once.
    """

    mtu = LONGEST_MTU
    max_queue_pairs = 1
    bounce_frames = 0
    poll_us = POLL_US
    in_order = True
    offloads = SENT_OFFLOADS
    interface_index = None
    link_up = True
    gone = False
    trouble = None
    disturbed = False

    def __init__(self, source: str, sink: str, *, repeat: bool = False) -> None:
        self.source, self.sink, self.repeat = source, sink, repeat
        self._capture: Capture | None = None
        self._sink_fd = -1
        self._port: PcapPort | None = None

    def open(self, queue_pairs: int, leaving: Port | None = None) -> None:
        """Read the input and create the output."""
        if self.source:
            self._capture = self._read()
        if self.sink:
            # A pipe that nobody reads is refused at once: to wait for a reader would be deaf to signals.
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK
            try:
                self._sink_fd = os.open(self.sink, flags, 0o600)
                os.set_blocking(self._sink_fd, True)
            except OSError as error:
                raise HostError(
                    f"cannot create the capture file {self.sink}: {error.strerror}",
                    f"ls -ld {Path(self.sink).parent}",
                ) from error

    def configure(self, leaving: Port | None = None) -> None:
        """Nothing to change."""

    def _read(self) -> Capture:
        if Path(self.source).is_fifo():  # to wait for its writer would be deaf to signals
            raise ConfigurationError(
                f"{self.source} is a pipe: the input is read as a whole", f"cat {self.source} > FILE"
            )
        try:
            capture = capture_file.read(Path(self.source).read_bytes())
        except OSError as error:
            raise ConfigurationError(
                f"cannot read the capture file {self.source}: {error.strerror}",
                f"ls -l {self.source}",
            ) from error
        except CaptureError as error:
            raise ConfigurationError(
                f"{self.source} is not a capture file that can be sent: {error}",
                error.remedy.replace("FILE", self.source),
            ) from error
        if capture.left_out:
            log.warning(
                "%s: frames that are sent: %d; left out: %s", self.source, len(capture), capture.losses
            )
        return capture

    def forget(self) -> None:
        """Nothing is prepared."""

    def prepare(self, pair: int, window: Window, queue_size: int, features: Feature) -> None:
        """Nothing takes long."""

    def attach(
        self, pair: int, window: Window, queue_size: int, features: Feature
    ) -> guestwire.datapath.port.Port:
        """Begin the input anew; go on with the output."""
        data, places = (self._capture.data, self._capture.places) if self._capture else (None, None)
        self._port = PcapPort(data, places, self._sink_fd, repeat=self.repeat)
        return self._port

    def resume(self, pair: int) -> None:
        """The file is there."""

    def quiesce(self, pair: int) -> None:
        """The file waits."""

    def detach(self, pair: int) -> None:
        """The files stay open until `close`."""

    def refresh(self) -> bool:
        """There is no interface to look at."""
        return False

    def announce(self, mac: bytes) -> None:
        """There is no network to tell."""

    def status(self) -> PortStatus:
        """Describe the port, and what kept it from writing."""
        failed = self._port.output_error if self._port else 0
        reason = f"cannot write {self.sink}: {os.strerror(failed)}" if failed else None
        return PortStatus("pcap", mode_reason=reason)

    def close(self) -> None:
        """Close the output."""
        if self._sink_fd >= 0:
            os.close(self._sink_fd)
            self._sink_fd = -1
