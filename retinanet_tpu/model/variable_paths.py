"""Names, counts and freezes the variables of a network.

Every variable has a readable path, such as `backbone/stage3/block2/conv1/kernel`.
Freezing, weight decay and warm start select variables by path, and a kernel's random
numbers depend on it. Networks are built eagerly, because only graphs number their name
scopes. So a path does not depend on networks that were built before.
"""

import contextlib
import difflib
import fnmatch
import math
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf

from retinanet_tpu import errors


def num_parameters(variables: Iterable[tf.Variable]) -> int:
    """Returns the total number of elements of variables."""
    return sum(math.prod(variable.shape) for variable in variables)


@contextlib.contextmanager
def frozen(patterns: Sequence[str]) -> Iterator[None]:
    """Makes variables untrainable that are built in the context and match a pattern.

    A gradient tape does not watch them, so the layers before the first trainable
    variable have no backward pass. A frozen `BatchNorm` keeps its moving statistics.

    Args:
      patterns: The patterns of paths, see `matching`.
    Raises:
      UserError: patterns is a string, or a pattern matches no variable.
    """
    if isinstance(patterns, str):
        raise errors.UserError(
            f"frozen is a list of patterns, got the string {patterns!r}."
        )
    paths: list[str] = []

    def creator(next_creator, **kwargs):
        paths.append(current_path(kwargs["name"]))
        if any(matching(paths[-1:], pattern) for pattern in patterns):
            kwargs["trainable"] = False
        return next_creator(**kwargs)

    with tf.variable_creator_scope(creator):
        yield
    for pattern in patterns:
        if not matching(paths, pattern):
            hint = _suggestion(pattern, paths)
            raise errors.UserError(f"frozen: {pattern!r} matches no variable; {hint}.")


def matching(paths: Iterable[str], pattern: str) -> list[str]:
    """Returns the paths that match a pattern.

    Args:
      paths: The paths of variables.
      pattern: A shell pattern of a whole path or of its first parts, such as
        "backbone/stage2" or "heads/*norm*". `*` also matches "/". The part "batch_norm"
        matches every batch normalization at or below its position: "batch_norm",
        "backbone/batch_norm".
    """
    parts = ["*norm*" if part == "batch_norm" else part for part in pattern.split("/")]
    whole = "/".join(parts)
    shell_patterns = (whole, f"{whole}/*")
    return [
        path
        for path in paths
        if any(fnmatch.fnmatchcase(path, shell) for shell in shell_patterns)
    ]


def _suggestion(pattern: str, paths: Sequence[str]) -> str:
    """Returns paths that are similar to a pattern, in words."""
    parts = [path.split("/") for path in paths]
    groups = {"/".join(p[:depth]) for p in parts for depth in range(1, len(p) + 1)}
    close = difflib.get_close_matches(pattern, sorted(groups))
    roots = sorted({p[0] for p in parts})
    return f"close to it are {close}" if close else f"paths begin with {roots}"


def current_path(name: str) -> str:
    """Returns the path of a variable that is built in the current name scope."""
    scope = tf.get_current_name_scope()
    return f"{scope}/{name}" if scope else name
