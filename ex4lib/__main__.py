"""``python -m ex4lib`` and ``ex4``: the command line, which Ctrl-C also ends quietly while it is loading."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from ex4lib import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
