"""Runs a command and prints the errors that its user can correct as messages."""

import contextlib
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import tensorflow as tf
from absl import app, logging

from retinanet_tpu import errors

# The main function of a command. It returns the exit code, None for 0. If the command
# accepts arguments that are not flags, they are its only parameter.
CommandFn: TypeAlias = Callable[..., int | None]

# TensorFlow raises these for storage, devices and corrupt records.
_ENVIRONMENT = (
    tf.errors.AbortedError,
    tf.errors.DataLossError,
    tf.errors.DeadlineExceededError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnauthenticatedError,
    tf.errors.UnavailableError,
)
# The modules of tf.io.gfile. Every error from there is about a file.
_FILE_ACCESS = re.compile(r"tensorflow/python/(lib/io/|training/py_checkpoint_reader)")
# Errors of the kernels that save, restore and list files have no such frame.
_ABOUT_A_FILE = re.compile(
    r"File system scheme|is not a directory"
    r"|; (No such file|Is a directory|Not a directory|Permission|Read-only file system"
    r"|No space left)|Error executing an HTTP request"
)
# gin and AutoGraph add these to the text of an error that they raise again.
_ADDED_TEXT = re.compile(r"\n  In call to configurable '|^in user code:", re.MULTILINE)
# TensorFlow adds the names of its nodes and kernels to a message.
_DECORATION = re.compile(
    r"\{\{[^}]*\}\} ?|\[\[[^]]*\]\]| ?\[Op:.*|^[\w ]+constructor: "
)
_HINTS = {
    "File system scheme": " Use a local path or gs://, which TensorFlow reads here.",
    "HTTP request": " Check the network, the bucket's name and the credentials.",
}


def run(
    main: CommandFn,
    *,
    takes_arguments: bool = False,
    exit_fn: Callable[[int], None] = sys.exit,
) -> None:
    """Runs a command and exits the process.

    An error that the user can correct is printed as one message and exits with 1. Any
    other exception keeps its traceback. With --verbosity=1 both print one.

    Args:
      main: The main function of the command.
      takes_arguments: Whether the command accepts arguments that are not flags.
      exit_fn: Ends the process with the exit code of the main function.
    """

    def guarded(argv):
        with explained():
            check_utf8([x for x in sys.argv[1:] if x not in argv])
            if takes_arguments:
                code = main(argv[1:])
            else:
                check_no_arguments(argv[1:])
                code = main()
        exit_fn(code or 0)

    logging.set_verbosity(logging.INFO)
    app.run(guarded)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Converts an error that the user can correct into an exit with a message."""
    try:
        yield
    except Exception as error:
        message = explanation(error)
        if message is None:
            raise
        logging.debug("Traceback of the error:", exc_info=True)
        sys.exit(f"error: {message}")


def check_utf8(flags: Sequence[str]) -> None:
    """Checks that flags are UTF-8, which TensorFlow requires of paths.

    Raises:
      UserError: A flag is not UTF-8.
    """
    for flag in flags:
        if flag != flag.encode(errors="ignore").decode():
            raise errors.UserError(f"{flag!a} is not UTF-8; rename the file or folder.")


def check_no_arguments(arguments: Sequence[str]) -> None:
    """Checks that all arguments of the command are flags.

    Raises:
      UserError: There are others; the message contains the missing quotes.
    """
    if not arguments:
        return
    settings = [x for x in arguments if re.match(r"[\w./@]+\s*=", x)]
    hint = "Remove them, or check the quotes of the flag before them."
    if settings:
        hint = f'Each setting needs its own flag: --gin_param="{settings[0]}".'
    raise errors.UserError(f"Unexpected arguments: {' '.join(arguments)}. {hint}")


def explanation(error: BaseException) -> str | None:
    """Returns the message of an error that the user can correct, or None.

    AutoGraph and gin raise errors again with longer texts. The message is the original
    text.
    """
    original = _original(error)
    if isinstance(original, errors.UserError | FloatingPointError):
        return str(original)
    if isinstance(original, OSError):
        return _os_message(original)
    if isinstance(original, tf.errors.OpError) and _is_environmental(original):
        return _op_message(original)
    return None


def _original(error: BaseException) -> BaseException:
    """Returns the error that gin or AutoGraph raised again, or the error itself."""
    while _ADDED_TEXT.search(str(error)) and error.__context__ is not None:
        error = error.__context__
    return error


def _os_message(error: OSError) -> str:
    if error.strerror is None:
        return str(error)
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror}."


def _op_message(error: tf.errors.OpError) -> str:
    lines = error.message.strip().partition("\n\n")[0].partition("Detected at")[0]
    text = _DECORATION.sub("", " ".join(lines.split()))
    text = text.replace("; ", ": ", 1).strip(" .")
    hints = [hint for part, hint in _HINTS.items() if part in text]
    return f"{text}.{''.join(hints)}"


def _is_environmental(error: tf.errors.OpError) -> bool:
    """Returns True if the cause is outside the program: storage, devices or files."""
    return (
        isinstance(error, _ENVIRONMENT)
        or bool(_ABOUT_A_FILE.search(error.message))
        or _is_from_file_access(error.__traceback__)
    )


def _is_from_file_access(traceback: types.TracebackType | None) -> bool:
    while traceback is not None:
        if _FILE_ACCESS.search(traceback.tb_frame.f_code.co_filename):
            return True
        traceback = traceback.tb_next
    return False
