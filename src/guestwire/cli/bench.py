"""``guestwire bench``: how fast guestwire is on this machine, and what keeps it from being faster."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from guestwire.errors import ConfigurationError

if TYPE_CHECKING:
    from guestwire.bench.plan import Plan
    from guestwire.bench.results import Report, Result

INTERRUPTED = 130
SIGNALLED = 128  # and the number of the signal, as shells say it
MOST_SECONDS, QUICK_MOST_SECONDS = 50.0, 10.0


def bench(
    port: Annotated[
        list[str] | None, typer.Option(help="A port to measure, such as xdp:veth0; by default echo and null.")
    ] = None,
    sizes: Annotated[str | None, typer.Option(help="Bytes of a frame.  [default: 64,256,1500,65536]")] = None,
    rings: Annotated[str | None, typer.Option(help="Entries of a ring.  [default: 256,1024]")] = None,
    queue_pairs: Annotated[str | None, typer.Option(help="Queue pairs.  [default: 1,4]")] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Windows a figure.  [default: 5]")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Of a window.  [default: 0.15]")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer cases, in less than 15 s.")] = False,
    cpus: Annotated[
        str | None, typer.Option(help="The backend's CPUs, then as many for the driver, such as 0,1.")
    ] = None,
    poll_us: Annotated[int | None, typer.Option(help="As for guestwire run.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures here; - for standard output.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw them: FILE.html or FILE.svg.")] = None,
) -> None:
    """Measure guestwire on this machine: frames a second, round trips, CPU time, and what limits them.

    The built-in driver sends, guestwire runs as a process of its own; without --port nothing of the
    machine's network is touched, and no privileges are needed.
    """
    from guestwire.bench import cpus as places  # noqa: PLC0415 (other verbs start faster without it)
    from guestwire.bench import measure  # noqa: PLC0415 (as above)

    if picture is not None and picture.suffix not in {".html", ".svg"}:
        raise ConfigurationError(f"--picture {picture} is neither .html nor .svg", "--picture bench.html")
    asked = {
        "frame_bytes": _numbers("sizes", sizes),
        "ring_sizes": _numbers("rings", rings),
        "queue_pairs": _numbers("queue-pairs", queue_pairs),
        "windows": windows,
        "seconds": seconds,
    }
    plan = _plan(port, {key: value for key, value in asked.items() if value is not None}, quick=quick)
    where = places.choose(max(plan.queue_pairs), _numbers("cpus", cpus))
    arguments = [] if poll_us is None else ["--poll-us", str(poll_us)]
    console = Console(highlight=False, stderr=json == Path("-"))
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) wants it
            signal.signal(number, _leave)
    try:
        with Bar(console, plan.count) as bar:
            report = measure.measure(plan, where, bar, arguments)
    except KeyboardInterrupt:
        console.print("interrupted: nothing is left behind")
        raise typer.Exit(INTERRUPTED) from None
    _show(report, console, json, picture)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """End as Python does, so that all that was made is removed."""
    sys.exit(SIGNALLED + number)


def _plan(ports: list[str] | None, asked: dict[str, Any], *, quick: bool) -> Plan:
    """Make a plan of what was asked for; if nothing was, it is bounded in time."""
    from guestwire.bench.plan import LOOPBACK, Plan, check, kind_of  # noqa: PLC0415 (as above)

    settings: dict[str, Any] = {"kinds": [kind_of(name) for name in ports or LOOPBACK]}
    if quick:
        settings |= {"frame_bytes": (64, 1500, 65536), "ring_sizes": (256,), "windows": 3}
    if quick or ports:
        settings["queue_pairs"] = (1,)  # a named interface may have one queue
    if not asked:
        settings["most_seconds"] = QUICK_MOST_SECONDS if quick else MOST_SECONDS
    return check(Plan(**(settings | asked)))


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise ConfigurationError(f"--{option} {text}: {error}", "give numbers, such as 64,1500") from error


def _show(report: Report, console: Console, json: Path | None, picture: Path | None) -> None:
    from guestwire.bench import picture as pictures  # noqa: PLC0415 (as above)
    from guestwire.bench.limits import summary  # noqa: PLC0415 (as above)
    from guestwire.bench.table import table  # noqa: PLC0415 (as above)

    console.print(table(report))
    for sentence in (*summary(report), *report.notes):
        console.print(sentence, markup=False, soft_wrap=True)
    console.print(f"{report.seconds:.0f} s in all.")
    if json is not None:
        _write(msgspec.json.format(msgspec.json.encode(report)).decode(), json)
    if picture is not None:
        pictures.save(report, picture)
        console.print(f"picture: {picture}", markup=False)


def _write(text: str, path: Path) -> None:
    if path == Path("-"):
        typer.echo(text)
        return
    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}", f"ls -ld {path.parent}") from error


class Bar(Progress):
    """A progress bar that draws only between two cases: nothing else runs while we measure."""

    def __init__(self, console: Console, cases: int) -> None:
        super().__init__(
            TextColumn("{task.completed:.0f} of {task.total:.0f}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            auto_refresh=False,
        )
        self._bench = self.add_task("", total=cases)

    def step(self, description: str) -> None:
        """Something else is done from now on."""
        self.update(self._bench, description=description, refresh=True)

    def result(self, result: Result) -> None:
        """A case is done."""
        self.advance(self._bench)
