"""``python -m ex4lib``."""

from ex4lib.cli import main

main()
