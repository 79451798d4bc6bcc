"""Packages are downloaded and unpacked, from the machine's own sources and from other suites."""

import subprocess
from pathlib import Path

import pytest

from guestwire.errors import HostError
from guestwire.testing import images, packages
from guestwire.testing.packages import Archive


def on(distribution, monkeypatch):
    release = {"ID": distribution, "VERSION_CODENAME": "codename"}
    monkeypatch.setattr(packages.platform, "freedesktop_os_release", lambda: release)


def test_nothing_is_fetched_twice(monkeypatch):
    busybox = images.busybox()
    monkeypatch.setattr(packages, "_downloaded", None)
    assert images.busybox() == busybox


def test_failed_download_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("GUESTWIRE_CACHE", str(tmp_path))
    monkeypatch.setattr(packages.os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match=r"apt-get .* no-such-package-at-all failed"):
        packages.unpacked("nothing", lambda _: ["no-such-package-at-all"])
    assert {path.name for path in packages.cache_directory().iterdir()} == {"lock"}


DEB822 = """\
# Types: deb
# URIs: https://archive.example/debian
# Signed-By: /not/this/one.gpg
Types: deb
URIs: https://other.example/debian
Suites: codename
Components: main
Signed-By: /keys/other.gpg

Types: deb deb-src
URIs: https://archive.example/debian
Suites: codename codename-updates
Components: main
Signed-By: /keys/archive.gpg
"""
ONE_LINE = """\
# deb [signed-by=/not/this/one.gpg] https://archive.example/debian codename main
deb [signed-by=/keys/other.gpg] https://other.example/debian codename main
deb [ arch=amd64 signed-by=/keys/archive.gpg ] https://archive.example/debian/ codename main
"""
NONE_NAMED = "deb https://archive.example/debian codename main\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        pytest.param("debian.sources", DEB822, Path("/keys/archive.gpg"), id="deb822"),
        pytest.param("sources.list", ONE_LINE, Path("/keys/archive.gpg"), id="one-line"),
        pytest.param("sources.list", NONE_NAMED, None, id="none named"),
    ],
)
def test_the_keyring_is_the_one_that_the_sources_name(tmp_path, name, text, expected):
    file = tmp_path / name
    file.write_text(text)
    assert packages._keyring(file, "https://archive.example/debian/") == expected


def test_an_archive_s_line_names_its_keyring():
    with_keyring = Archive("https://archive.example/debian", Path("/keys/archive.gpg"), ("codename",))
    assert (
        with_keyring.line("sid")
        == "deb [signed-by=/keys/archive.gpg] https://archive.example/debian sid main\n"
    )
    without = Archive("https://archive.example/debian", None, ("codename",))
    assert without.line("sid") == "deb https://archive.example/debian sid main\n"


def test_other_suites_are_debian_s(monkeypatch):
    on("ubuntu", monkeypatch)
    with (
        pytest.raises(HostError, match="only on Debian; this is ubuntu") as raised,
        packages.other_suite("sid"),
    ):
        pass
    assert raised.value.remedy


@pytest.fixture
def debian():
    try:
        return packages.debian_archive()
    except HostError as error:
        pytest.skip(str(error))


def test_the_archive_is_one_that_apt_reads(debian):
    policy = subprocess.run(["apt-cache", "policy"], capture_output=True, text=True, check=True).stdout
    assert debian.uri.rstrip("/") in policy
    assert debian.keyring is None or debian.keyring.is_file()


def test_a_suite_that_is_not_there_is_named(debian):
    with (
        pytest.raises(HostError, match="suite no-such-suite cannot be read"),
        packages.other_suite("no-such-suite"),
    ):
        pass


def test_another_suite_is_read_and_the_machine_s_sources_stay(debian):
    def own_sources():
        return subprocess.run(["apt-get", "indextargets"], capture_output=True, check=True).stdout

    before = own_sources()
    with packages.other_suite("sid") as apt:
        assert "\nPackage: linux-image-amd64\n" in "\n" + apt.record("linux-image-amd64")
        assert own_sources() == before
    assert own_sources() == before
