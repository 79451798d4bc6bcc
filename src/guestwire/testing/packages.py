"""Packages of the distribution, downloaded and unpacked into a folder of ours.

Nothing is installed: no boot loader runs, no installed package is replaced, and the machine's own
package sources are never changed.  What was fetched once stays: ``$GUESTWIRE_CACHE``, else
``$XDG_CACHE_HOME/guestwire``, else ``~/.cache/guestwire``.

A package that is newer than the machine's release comes from another suite of the same archive
(``other_suite``): apt works then with a configuration that lives only as long as the download.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from guestwire.errors import HostError

Progress = Callable[[str], None]

# What `apt-get --simulate install` says about a package that it would add or replace.
WOULD_INSTALL = re.compile(r"^Inst (\S+) .*?\((\S+) ", re.MULTILINE)

# Of what such a plan names, as ``name=version``: the C library, and what programs are linked with.
LIBRARY = re.compile(r"lib(?!js-|python|.*-(bin|data|dbg|dev|devtools|extra|l10n|modules|perl)=)")


def quiet(message: str) -> None:
    """Discard a progress message."""


def cache_directory() -> Path:
    """The folder that keeps what was fetched and built for guests of this distribution."""
    root = os.environ.get("GUESTWIRE_CACHE")
    if root is None:
        user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = str(Path(user_cache) / "guestwire")
    release = platform.freedesktop_os_release()
    name = f"{release['ID']}-{release.get('VERSION_CODENAME', 'rolling')}-{platform.machine()}"
    return Path(root).absolute() / name


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that use this cache folder out, for as long as the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Apt:
    """The package tool with a choice of package sources; without options, the machine's own."""

    options: tuple[str, ...] = ()

    def record(self, package: str) -> str:
        """What the sources say about a package's newest version; empty if they do not offer it."""
        return self._output("apt-cache", "show", "--no-all-versions", package)

    def additions(self, package: str, suite: str) -> list[str]:
        """What would have to be installed or replaced here to install a package from a suite.

        Returns:
            The package and those that it depends on, as ``name=version``.
        """
        options = (f"--target-release={suite}", "--no-install-recommends")
        plan = self._output("apt-get", "--simulate", *options, "install", package)
        return [f"{name}={version}" for name, version in WOULD_INSTALL.findall(plan)]

    def update(self) -> None:
        """Fetch the package lists anew.

        Raises:
            HostError: a source cannot be read.
        """
        self._run("apt-get", "-q", "update")

    def download(self, packages: Sequence[str], folder: Path) -> list[Path]:
        """Download packages into a folder, and return the archives.

        Raises:
            HostError: the sources do not offer them, or cannot be reached.
        """
        # The sandbox user has no access to a private cache folder; apt would only warn and go on.
        self._run("apt-get", "-q", "-oAPT::Sandbox::User=root", "download", *packages, folder=folder)
        return sorted(folder.glob("*.deb"))

    def _output(self, program: str, *arguments: str) -> str:
        command = [program, *self.options, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        return done.stdout.decode(errors="replace")

    def _run(self, program: str, *arguments: str, folder: Path | None = None) -> None:
        command = [program, *self.options, *arguments]
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
        if done.returncode != 0:
            raise _failure([program, *arguments], done)


Selection = Callable[[Apt], Sequence[str]]


def unpacked(
    name: str,
    select: Selection,
    progress: Progress = quiet,
    *,
    suite: str | None = None,
    prune: Callable[[Path], None] | None = None,
) -> Path:
    """The folder that packages were unpacked into, now or earlier.

    Args:
        name: of the folder, inside the cache.
        select: chooses the packages, when they are not there yet.
        progress: is told what takes time.
        suite: the suite of the distribution's archive to take them from; the machine's own sources
            when None.
        prune: called with the folder before it is kept, to remove what nobody needs.

    Raises:
        HostError: the packages cannot be had.
    """
    cache = cache_directory()
    target = cache / name
    if target.is_dir():
        return target
    if shutil.which("apt-get") is None:
        raise HostError(
            "this machine has no apt-get: guests are made from Debian's or Ubuntu's packages",
            f"unpack a kernel, its modules and busybox by hand into {cache}, see images.py",
        )
    with locked(cache), tempfile.TemporaryDirectory(dir=cache) as scratch:
        if not target.is_dir():  # a parallel run may have made it while we waited
            folder, files = Path(scratch) / "archives", Path(scratch) / "files"
            folder.mkdir()
            if suite is None:
                archives = _from_own_sources(select, folder, progress)
            else:
                archives = _from_suite(suite, select, folder, progress)
            for archive in archives:
                _extract(archive, files)
            if prune is not None:
                prune(files)
            files.replace(target)
    return target


def own_loader(root: Path) -> tuple[str, ...]:
    """The words before the path of a program from another suite, which start it.

    It runs by the dynamic loader and the C library that it was built for (the package ``libc6`` must be
    among those unpacked), with the libraries there, and with whatever else it needs from the machine.

    Args:
        root: the folder that its packages were unpacked into.

    Raises:
        HostError: there is no loader in it.
    """
    loaders = list(root.glob("usr/lib/*/ld-linux-*.so.*"))
    if len(loaders) != 1:
        raise HostError(
            f"{root} holds no dynamic loader",
            f"move it away, so that it is fetched again: mv {root} {root}.old",
        )
    (loader,) = loaders
    system = Path("/") / loader.parent.relative_to(root)
    return (str(loader), "--library-path", f"{loader.parent}:{system}")


def _from_own_sources(select: Selection, folder: Path, progress: Progress) -> list[Path]:
    apt = Apt()
    try:
        return _downloaded(apt, select, folder, progress)
    except HostError:
        # Lists that are missing or older than what the mirror keeps are cured by a new look.
        if os.geteuid() != 0:
            raise
        progress("updating the package lists")
        apt.update()
        return _downloaded(apt, select, folder, progress)


def _from_suite(suite: str, select: Selection, folder: Path, progress: Progress) -> list[Path]:
    with other_suite(suite, progress) as apt:
        return _downloaded(apt, select, folder, progress)


def _downloaded(apt: Apt, select: Selection, folder: Path, progress: Progress) -> list[Path]:
    names = select(apt)
    progress(f"downloading {', '.join(names)}")
    return apt.download(names, folder)


@contextmanager
def other_suite(suite: str, progress: Progress = quiet) -> Iterator[Apt]:
    """Apt for the machine's own Debian archive and one more suite of it, lists up to date.

    Args:
        suite: such as ``sid`` or ``bookworm-backports``.
        progress: is told what takes time.

    Raises:
        HostError: this machine is no Debian, or the suite cannot be read.
    """
    archive = debian_archive()
    progress(f"reading the package lists of {suite}")
    with tempfile.TemporaryDirectory(prefix="guestwire-apt-") as name:
        folder = Path(name)
        for subfolder in ("lists/partial", "cache", "none"):
            (folder / subfolder).mkdir(parents=True)
        sources = folder / "sources.list"
        sources.write_text("".join(archive.line(each) for each in (suite, *archive.suites)))
        settings = {
            "APT::Default-Release": "",
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
            "Acquire::Languages": "none",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": folder / "none",
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": folder / "none",
            "Dir::State::Lists": folder / "lists",
        }
        apt = Apt(tuple(f"-o{key}={value}" for key, value in settings.items()))
        try:
            apt.update()
        except HostError as error:
            raise HostError(f"Debian's suite {suite} cannot be read: {error}", error.remedy) from error
        yield apt


@dataclass(frozen=True)
class Archive:
    """Where the machine's Debian packages come from.

    Attributes:
        uri: of the archive, as the machine's sources name it.
        keyring: the file with the keys that sign it; None for all keys that apt trusts.
        suites: of it that the machine uses.
    """

    uri: str
    keyring: Path | None
    suites: tuple[str, ...]

    def line(self, suite: str) -> str:
        """The line of a sources.list that stands for a suite."""
        option = f" [signed-by={self.keyring}]" if self.keyring else ""
        return f"deb{option} {self.uri} {suite} main\n"


def debian_archive() -> Archive:
    """The Debian archive among the machine's package sources.

    Raises:
        HostError: this machine is no Debian, or its sources name none.
    """
    distribution = platform.freedesktop_os_release()["ID"]
    if distribution != "debian" or shutil.which("apt-get") is None:
        raise HostError(
            f"packages of other Debian suites are taken only on Debian; this is {distribution}",
            "use a Debian machine, or a container of one",
        )
    entries = _debian_entries()
    if not entries and os.geteuid() == 0:  # which of the sources are Debian's, only the lists say
        Apt().update()
        entries = _debian_entries()
    if not entries:
        raise HostError(
            "the machine's package sources name no Debian archive whose lists were read",
            "read them, or name one: apt-get update",
        )
    uri, _, entry = entries[0]
    suites = dict.fromkeys(suite for same, suite, _ in entries if same == uri)
    return Archive(uri, _keyring(Path(entry.rpartition(":")[0]), uri), tuple(suites))


def _debian_entries() -> list[list[str]]:
    """URI, suite and place of each of the machine's package sources that is Debian's."""
    fields = "$(REPO_URI)|$(RELEASE)|$(SOURCESENTRY)"
    only = ("Created-By: Packages", "Component: main", "Origin: Debian", "Label: Debian")
    command = ["apt-get", "indextargets", "--format", fields, *only]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return [line.split("|") for line in done.stdout.decode(errors="replace").splitlines()]


def _keyring(sources: Path, uri: str) -> Path | None:
    """The keyring that a file of package sources names for an archive.

    That is the one thing about its sources that apt does not tell.  See sources.list(5): a file
    with the extension ``.sources`` consists of paragraphs, any other of lines.
    """
    lines = [line for line in sources.read_text().splitlines() if not line.lstrip().startswith("#")]
    entries: Iterable[str] = lines
    if sources.suffix == ".sources":
        entries = re.split(r"\n\s*\n", "\n".join(lines))
    for entry in entries:
        named = re.search(r"signed-by\s*[:=]\s*(/[^\s,\]]+)", entry, re.IGNORECASE)
        if named and uri.rstrip("/") in entry:
            return Path(named[1])
    return None


def _extract(archive: Path, folder: Path) -> None:
    command = ["dpkg-deb", "--extract", str(archive), str(folder)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise _failure(command, done)


def _failure(command: Sequence[str], done: subprocess.CompletedProcess[bytes]) -> HostError:
    reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return HostError(
        f"{' '.join(command)} failed: {reason or f'exit status {done.returncode}'}",
        "check the machine's package sources: apt-get update",
    )
