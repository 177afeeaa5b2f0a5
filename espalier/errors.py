"""The one exception tree for mistakes that a user can make and mend."""


class EspalierError(Exception):
    """A mistake in what the user gave us, told in one sentence: the rule, the offender, the remedy.

    The command line prints the sentence and exits with status 1; it never shows a traceback for
    these. A bug of ours is an ``AssertionError`` or any other exception.
    """


class FormatError(EspalierError, ValueError):
    """A number format that does not exist, or one that cannot hold what it must."""


class DataError(EspalierError):
    """A data set, checkpoint or other file is missing, corrupt, or not of the shape it must have."""


class GraphError(EspalierError):
    """A network breaks a rule of the intermediate representation."""


class UnsupportedError(EspalierError):
    """A layer, option or network that this version does not take. Names the layer and the remedy."""


class FitError(EspalierError):
    """A network does not fit the machine, or no machine fits the constraints. Gives the numbers."""


class ToolError(EspalierError):
    """An outside program (simulator, synthesiser, compiler) is missing or failed."""


class MismatchError(EspalierError):
    """Two executions that must agree bit for bit do not."""
