"""The one place where the errors of a command become text for its user."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence

import tensorflow as tf
from absl import app, logging

from retinanet_tpu import errors

# TensorFlow raises these for storage, devices and damaged records.
_ENVIRONMENT = (
    tf.errors.AbortedError,
    tf.errors.DataLossError,
    tf.errors.DeadlineExceededError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnauthenticatedError,
    tf.errors.UnavailableError,
)
# tf.io.gfile; an error of any kind from there is about a file.
_FILE_ACCESS = re.compile(r"tensorflow/python/(lib/io/|training/py_checkpoint_reader)")
# The kernels that save, restore and list files carry no frame of the above.
_ABOUT_A_FILE = re.compile(
    r"File system scheme|is not a directory"
    r"|; (No such file|Is a directory|Not a directory|Permission|Read-only file system"
    r"|No space left)|Error executing an HTTP request"
)
# gin and AutoGraph add these to the text of an error that passes through them.
_ADDED_TEXT = re.compile(r"\n  In call to configurable '|^in user code:", re.MULTILINE)
# TensorFlow puts the names of its nodes and kernels around what happened.
_DECORATION = re.compile(
    r"\{\{[^}]*\}\} ?|\[\[[^]]*\]\]| ?\[Op:.*|^[\w ]+constructor: "
)
_HINTS = {
    "File system scheme": " Use a local path or gs://, which TensorFlow reads here.",
    "HTTP request": " Check the network, the bucket's name and the credentials.",
}


def run(
    main: Callable[[], int | None] | Callable[[Sequence[str]], int | None],
    *,
    takes_arguments: bool = False,
) -> None:
    """Runs a command and exits the process.

    An error that the user can correct is printed as one message and exits with 1. Any
    other exception keeps its traceback. With --verbosity=1 both print one.

    Args:
      main: Returns the exit code, None for 0. It is called with the arguments that are
        no flags if `takes_arguments`, else with nothing.
      takes_arguments: Whether the command accepts arguments that are no flags.
    """

    def guarded(argv):
        with explained():
            check_utf8([x for x in sys.argv[1:] if x not in argv])
            if takes_arguments:
                return main(argv[1:])
            check_no_arguments(argv[1:])
            return main()

    logging.set_verbosity(logging.INFO)
    app.run(guarded)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Exits with a message in place of an error that the user can correct."""
    try:
        yield
    except Exception as error:
        message = explanation(error)
        if message is None:
            raise
        logging.debug("Traceback of the error:", exc_info=True)
        sys.exit(f"error: {message}")


def check_utf8(flags: Sequence[str]) -> None:
    """Checks that flags are UTF-8, as TensorFlow requires of paths.

    Raises:
      UserError: One is not.
    """
    for flag in flags:
        if flag != flag.encode(errors="ignore").decode():
            raise errors.UserError(f"{flag!a} is not UTF-8; rename the file or folder.")


def check_no_arguments(arguments: Sequence[str]) -> None:
    """Checks that the shell passed nothing but flags.

    Raises:
      UserError: There are arguments; contains the quotes that are missing.
    """
    if not arguments:
        return
    settings = [x for x in arguments if re.match(r"[\w./@]+\s*=", x)]
    hint = "Remove them, or check the quotes of the flag before them."
    if settings:
        hint = f'Each setting needs its own flag: --gin_param="{settings[0]}".'
    raise errors.UserError(f"Unexpected arguments: {' '.join(arguments)}. {hint}")


def explanation(error: BaseException) -> str | None:
    """Returns the message of an error that the user can correct, else None.

    AutoGraph and gin re-raise errors with longer texts; the original text is returned.
    """
    original = _original(error)
    if isinstance(original, errors.UserError | FloatingPointError):
        return str(original)
    if isinstance(original, OSError):
        return _os_message(original)
    if isinstance(original, tf.errors.OpError) and _is_environmental(original):
        return _op_message(original)
    return None


def _original(error):
    """Returns the error that gin or AutoGraph raised again, else the error itself."""
    while _ADDED_TEXT.search(str(error)) and error.__context__ is not None:
        error = error.__context__
    return error


def _os_message(error):
    if error.strerror is None:
        return str(error)
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror}."


def _op_message(error):
    lines = error.message.strip().partition("\n\n")[0].partition("Detected at")[0]
    text = _DECORATION.sub("", " ".join(lines.split()))
    text = text.replace("; ", ": ", 1).strip(" .")
    hints = [hint for part, hint in _HINTS.items() if part in text]
    return f"{text}.{''.join(hints)}"


def _is_environmental(error):
    return (
        isinstance(error, _ENVIRONMENT)
        or bool(_ABOUT_A_FILE.search(error.message))
        or _comes_from_file_access(error.__traceback__)
    )


def _comes_from_file_access(traceback):
    while traceback is not None:
        if _FILE_ACCESS.search(traceback.tb_frame.f_code.co_filename):
            return True
        traceback = traceback.tb_next
    return False
