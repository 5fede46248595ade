"""``python -m ex4lib``: every recipe from a shell."""

from __future__ import annotations

import sys

import typer

from ex4lib import images
from ex4lib.cli import drawing, pictures

app = typer.Typer(
    help="Style as an optimisation target. Pictures are given by path, URL or the name of a shipped one "
    f"({', '.join(images.names())}).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
COMMANDS = (
    *(pictures.stylize, pictures.invert, pictures.texture),
    *(drawing.guide, drawing.distil, drawing.evaluate, drawing.sweep),
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run the command line; a mistake in its arguments is one sentence and exit code 1."""
    try:
        app()
    except (ValueError, OSError) as error:
        typer.echo(f"ex4lib: {error}", err=True)
        sys.exit(1)
