"""From flags to a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestwire.cli import run
from guestwire.errors import ConfigurationError

FLAGS = {"socket_path": "/run/vm1.sock", "port": "echo"}


def test_a_guest_of_flags() -> None:
    configuration = run._configuration(None, {**FLAGS, "cpus": "2,3", "max_pinned": "1.5G"})
    (guest,) = configuration.guest
    assert (guest.name, guest.cpus, guest.max_pinned) == ("vm1", (2, 3), None)
    assert configuration.max_pinned_bytes == 3 << 29
    assert run._configuration(None, dict(FLAGS)).max_pinned is None


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ({"max_pinned": "8X"}, "wrong flag: max_pinned: '8X' is no size"),
        ({"cpus": "two"}, "--cpus two: "),
        ({"coalesce_packets": 0}, r"wrong flag: .* at `\$.guest\[0\].coalesce_packets`"),
        ({"queue_pairs": 65}, r"wrong flag: .* at `\$.guest\[0\].queue_pairs`"),
    ],
)
def test_a_wrong_flag(flags: dict[str, object], error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        run._configuration(None, {**FLAGS, **flags})


def test_a_file_and_flags(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--max-pinned contradict each other"):
        run._configuration(tmp_path / "guests.toml", {"max_pinned": "8G"})
