"""Reads JSON that may contain anything, because users and other programs write it."""

import json
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from retinanet_tpu import errors


def read(path: str) -> Any:
    """Returns the value in a JSON file.

    Args:
      path: A local or remote file.
    Raises:
      NotFoundError: There is no such file (an error of TensorFlow).
      UserError: See `parse`.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    return parse(content, path)


def parse(
    content: bytes | str,
    source: str,
    *,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
    nan_to_none: bool = False,
) -> Any:
    """Returns the value of a JSON text.

    Args:
      content: The text. The encoding of bytes is detected: UTF-8, UTF-16 or UTF-32.
      source: The path of the file or the name of the variable, for error messages.
      object_hook: The same as in `json.loads`.
      nan_to_none: Whether NaN and infinity become None.
    Raises:
      UserError: The text is not JSON, is cut off or is nested too deeply.
    """
    parse_constant = (lambda _: None) if nan_to_none else None
    try:
        return json.loads(
            content, object_hook=object_hook, parse_constant=parse_constant
        )
    except UnicodeDecodeError as error:
        raise errors.UserError(f"{source} is not JSON: not UTF-8 text.") from error
    except ValueError as error:  # Also integers of more than 4,300 digits.
        raise errors.UserError(f"{source} is not JSON, or cut off: {error}.") from error
    except RecursionError as error:
        raise errors.UserError(f"{source} is nested too deeply: {error}.") from error
