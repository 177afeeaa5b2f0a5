"""``python -m espalier``: the command line."""

from espalier.cli import main

raise SystemExit(main())
