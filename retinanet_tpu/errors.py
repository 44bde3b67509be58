"""The errors that a user of the package can correct.

Each error has one message. It contains what was got, what was expected and what to
change. The commands print only this message. Any other exception is a fault of the
program and keeps its traceback.
"""


class UserError(ValueError):
    """An error in a setting, a file or a command line that the user can correct."""

    # AutoGraph preserves the class of an error in a traced step only with this line.
    __init__ = Exception.__init__


class MissingFileError(UserError, FileNotFoundError):
    """A file or directory that the user named and that does not exist."""

    def __str__(self) -> str:
        """Returns the message."""
        return ValueError.__str__(self)


class MissingPackageError(UserError, ImportError):
    """A package that the command requires and that is not installed."""

    def __str__(self) -> str:
        """Returns the message."""
        return ValueError.__str__(self)
