"""A zero-copy network backend for KVM/QEMU guests: vhost-user on one side, AF_XDP on the other."""

from guestwire.errors import (
    ConfigurationError,
    FrontendError,
    GuestError,
    GuestwireError,
    HostError,
)

__version__ = "0.1.0"

__all__ = [
    "ConfigurationError",
    "FrontendError",
    "GuestError",
    "GuestwireError",
    "HostError",
    "__version__",
]
