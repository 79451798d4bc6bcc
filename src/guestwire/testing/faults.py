"""What can be wrong with a backend under test.

Each says what was expected and what was found, with the numbers; the remedy names where to look.
"""

from __future__ import annotations

from guestwire.errors import GuestwireError


class BackendError(GuestwireError):
    """The backend under test broke vhost-user, refused a request, or did not answer."""


class DeviceError(GuestwireError):
    """The backend under test broke a rule of virtio on a ring."""


class VerificationError(GuestwireError):
    """Frames did not arrive as they were sent: lost, repeated, out of order, or changed."""
