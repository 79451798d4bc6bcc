"""What the benchmarks' commands have in common."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from sheet import Sheet

from guestwire.errors import GuestwireError

RESULTS = Path(__file__).resolve().parent / "results"

SHOWING: dict[str, dict[str, Any]] = {
    "--show": {"type": Path, "metavar": "RESULTS", "help": "measure nothing, show older results"},
    "--markdown": {"action": "store_true", "help": "show the tables as README.md has them"},
}


def parse(description: str, options: Mapping[str, Mapping[str, Any]]) -> argparse.Namespace:
    """Read the arguments of a command."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for name, option in options.items():
        parser.add_argument(name, **option)
    return parser.parse_args()


def results_file(name: str) -> Path:
    """Return where the results of today are kept."""
    return RESULTS / f"{name}-{datetime.date.today().isoformat()}.json"


def choice(names: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    """Return what reads an option that names some of these."""

    known = tuple(names)

    def read(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
        return chosen

    return read


def end_well() -> None:
    """Have a signal that ends us end what we have started, and give back what we have taken, too."""
    us = os.getpid()

    def end(*_: object) -> None:
        if os.getpid() == us:
            sys.exit(143)
        os._exit(143)  # pyroute2 forks helpers, and ends them so: they have nothing to clean up

    signal.signal(signal.SIGTERM, end)


def show(sheets: Iterable[Sheet], console: Console, *, markdown: bool) -> None:
    """Print tables."""
    for sheet in sheets:
        if markdown:
            print(f"{sheet.title}\n\n{sheet.markdown()}\n")
        else:
            console.print(sheet.terminal())


def run(main: Callable[[], None]) -> None:
    """Run a command to its end, whatever that is."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except GuestwireError as error:
        sys.exit(f"{error}\n{error.remedy or ''}".rstrip())
