"""The command line: one verb a file."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

import guestwire
from guestwire.cli.bench import bench
from guestwire.cli.demo import demo
from guestwire.cli.doctor import doctor
from guestwire.cli.rebind import rebind
from guestwire.cli.run import run
from guestwire.cli.status import status
from guestwire.errors import GuestwireError

app = typer.Typer(
    name="guestwire",
    help="A zero-copy network backend for KVM/QEMU guests.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(status)
app.command()(rebind)
app.command()(doctor)
app.command()(demo)
app.command()(bench)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"guestwire {guestwire.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """A zero-copy network backend for KVM/QEMU guests."""


def show_error(error: GuestwireError) -> None:
    """Print an error for people: what happened, then what to do."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[bold red]guestwire:[/] {_plain(str(error))}")
    if error.remedy:
        console.print(f"  [bold]to do:[/] {_plain(error.remedy)}")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def main() -> None:
    """Run the command line; the exit status tells whose fault it was (`guestwire.errors`)."""
    try:
        app()
    except GuestwireError as error:
        show_error(error)
        sys.exit(error.exit_code)
