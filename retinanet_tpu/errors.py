"""The errors that a user of the package can correct.

Each carries one message: what was found, what was expected and what to change. The
commands print that message alone; any other exception is a fault of the program and
keeps its traceback.
"""


class UserError(ValueError):
    """A setting, a file or a command line that the user can correct."""

    # AutoGraph keeps the class of an error in a traced step only if it has this one.
    __init__ = Exception.__init__


class MissingFileError(UserError, FileNotFoundError):
    """A file or directory that does not exist where the user said."""

    def __str__(self) -> str:
        """Returns the message."""
        return ValueError.__str__(self)


class MissingPackageError(UserError, ImportError):
    """A package that the command needs and that is not installed."""

    def __str__(self) -> str:
        """Returns the message."""
        return ValueError.__str__(self)
