"""``python -m ex4lib``: every recipe from a shell."""

import functools
import sys
from collections.abc import Callable

import typer

from ex4lib import images
from ex4lib.cli import batch, guide, info, pictures

app = typer.Typer(
    help="Style as an optimisation target. Pictures are given by path, URL or the name of a shipped one "
    f"({', '.join(images.names())}).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
COMMANDS = (pictures.stylize, pictures.stylize_video, pictures.invert, pictures.texture, guide.guide, info.info)


def interruptible(command: Callable) -> Callable:
    """The command, which says so when Ctrl-C ends it (typer would exit silently)."""

    @functools.wraps(command)
    def run(*arguments, **options):
        try:
            command(*arguments, **options)
        except KeyboardInterrupt:
            typer.echo("ex4lib: interrupted; finished files are kept", err=True)
            sys.exit(130)

    return run


for command in COMMANDS:
    app.command()(interruptible(command))


def main(commands: Callable = app, name: str = "ex4lib") -> None:
    """Run the command line; a mistake in its arguments is one sentence and exit code 1."""
    try:
        commands()
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        text = batch.reason(error)
        if type(error) is RuntimeError and text == " ".join(str(error).split()):
            raise  # a fault of the program, not of its arguments
        typer.echo(f"{name}: {text}", err=True)
        sys.exit(1)
