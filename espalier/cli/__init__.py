"""The command line: arguments to the stages of ``flow``, errors to one sentence and an exit status.

Status 0 is success, 1 a mistake or failure (one sentence on standard error), 2 wrong usage, 130 an
interrupt; what earlier commands wrote is intact in every case.
"""

from espalier.cli.commands import app, main

__all__ = ["app", "main"]
