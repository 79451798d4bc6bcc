"""What describes guests, and what does not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from guestwire.config import Configuration, GuestConfig, check, complete, load
from guestwire.errors import ConfigurationError
from guestwire.vhost_user.socket_file import SocketAccess


def guest(**fields: object) -> GuestConfig:
    return msgspec.convert({"port": "echo", "socket_path": "/run/vm1.sock", **fields}, GuestConfig)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "vm1"),
        ({"name": "mail"}, "mail"),
        ({"socket_path": "vm.1.sock"}, "vm.1"),
        ({"socket_path": "/run/my vm/ä b.sock"}, "__b"),
        ({"socket_path": "/" + "x" * 100}, "x" * 64),
        ({"socket_path": None, "fd": 3}, "fd3"),
    ],
)
def test_names(fields: dict[str, object], name: str) -> None:
    assert complete(guest(**fields)).name == name


@pytest.mark.parametrize(
    ("fields", "error", "remedy"),
    [
        ({"socket_path": None}, "guest 'echo' needs either socket_path or fd", "--socket-path"),
        ({"fd": 3}, "guest 'echo' needs either socket_path or fd", "--socket-path"),
        ({"socket_path": None, "fd": 3, "role": "connect"}, "file descriptor 3 is open already", "--connect"),
        ({"role": "connect", "socket_mode": "0660"}, "does not make its socket", "--socket-mode"),
        ({"role": "connect", "socket_group": 0}, "does not make its socket", "--socket-group"),
        ({"socket_path": None, "fd": 3, "socket_mode": "0660"}, "does not make its socket", "--socket-mode"),
        ({"socket_group": "no such group"}, "there is no group 'no such group'", "getent group"),
        ({"mac": "33:00:00:00:00:01"}, "33:00:00:00:00:01 is a group's", "such as 32:00:00:00:00:01"),
    ],
)
def test_what_contradicts_itself(fields: dict[str, object], error: str, remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=error) as caught:
        complete(guest(**fields))
    assert remedy in str(caught.value.remedy)


@pytest.mark.parametrize(
    "fields",
    [
        {"socket_path": ""},
        {"name": "a/b"},
        {"name": "x" * 65},
        {"socket_mode": "0888"},
        {"socket_mode": "66"},
        {"socket_mode": "06660"},
        {"socket_mode": 0o660},
        {"socket_group": ""},
        {"socket_group": -1},
        {"queue_pairs": 0},
        {"queue_pairs": 65},
        {"mac": "02:00:00:00:00"},
        {"poll_us": -1},
        {"coalesce_us": -1},
        {"coalesce_us": 1_000_001},
        {"coalesce_packets": 0},
        {"coalesce_packets": 32_769},
        {"cpus": [-1]},
        {"cpus": [1 << 40]},
        {"role": "client"},
        {"port": None},
        {"sockets": "x"},
        {"max_pinned": "much"},
        {"max_pinned": "4096"},
        {"max_pinned": 1 << 30},
    ],
    ids=str,
)
def test_what_no_guest_has(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        guest(**fields)


def test_who_may_connect() -> None:
    assert guest().socket_access == SocketAccess()
    assert guest(socket_mode="660").socket_access == SocketAccess(0o660)
    assert guest(socket_mode="0600", socket_group="root").socket_access == SocketAccess(0o600, 0)
    assert guest(socket_group=7).socket_access == SocketAccess(None, 7)


def test_guests_must_differ() -> None:
    one, other = guest(), guest(name="other")
    for second, what in ((one, "name: vm1"), (other, "socket_path: /run/vm1.sock")):
        with pytest.raises(ConfigurationError, match=f"two guests have the same {what}"):
            check(Configuration(guest=(one, second)))
    inherited = [guest(socket_path=None, fd=3, name=name) for name in ("a", "b")]
    with pytest.raises(ConfigurationError, match="two guests have the same fd: 3"):
        check(Configuration(guest=tuple(inherited)))


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "guests.toml"
    file.write_text(
        """
        [[guest]]
        socket_path = "/run/vm1.sock"
        port = "xdp:eth1"
        queue_pairs = 2
        cpus = [2, 3]

        [[guest]]
        fd = 3
        port = "null"
        """
    )
    first, second = load(file).guest
    assert first == guest(port="xdp:eth1", name="vm1", queue_pairs=2, cpus=[2, 3])
    assert (second.name, second.fd, second.role, second.poll_us) == ("fd3", 3, "listen", None)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "missing required field `guest`"),
        (b"guest = []", "the configuration names no guest"),
        (b"[[guest", "does not describe guests"),
        (b"\xff", "does not describe guests"),
        (b"[guest]\nport = 'echo'", "does not describe guests"),
        (b"guests = []", "unknown field `guests`"),
        (b"max_pinned = 1\nguest = []", r"Expected `str \| null`, got `int` - at `\$.max_pinned`"),
        (b"max_pinned = '8X'\nguest = []", "max_pinned: '8X' is no size: write a number with its unit"),
        (b"[[guest]]\nport = 'echo'\nmax_pinned = ''", r"max_pinned: '' is no size.* - at `\$.guest\[0\]`"),
        (b"[[guest]]\nport = 1", r"Expected `str`, got `int` - at `\$.guest\[0\].port`"),
    ],
)
def test_a_file_that_describes_no_guests(tmp_path: Path, data: bytes, error: str) -> None:
    file = tmp_path / "guests.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigurationError, match=error) as caught:
        load(file)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot read") as caught:
        load(tmp_path / name)
    assert caught.value.remedy == f"ls -l {tmp_path / name}"


def test_limits_on_pinned_memory(tmp_path: Path) -> None:
    file = tmp_path / "guests.toml"
    file.write_text(
        """
        max_pinned = "8G"

        [[guest]]
        socket_path = "/run/vm1.sock"
        port = "xdp:eth1"
        max_pinned = "1.5G"

        [[guest]]
        socket_path = "/run/vm2.sock"
        port = "xdp:eth2"
        """
    )
    configuration = load(file)
    assert configuration.max_pinned_bytes == 8 << 30
    assert [guest.max_pinned_bytes for guest in configuration.guest] == [3 << 29, None]
    assert check(Configuration(guest=(guest(),))).max_pinned_bytes is None
