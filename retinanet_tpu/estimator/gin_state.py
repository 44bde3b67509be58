"""Separates the gin configuration of a run from that of the program that loads it."""

import contextlib
import copy
import threading
from collections.abc import Iterator

import gin

# The global state that `gin_files.parse` and calls of configurables change. gin has no
# function that returns it.
_STATE = (
    "_CONFIG",
    "_IMPORTS",
    "_OPERATIVE_CONFIG",
    "_SINGLETONS",
    "_FINALIZE_HOOKS",
    "_FILE_READERS",
    "_LOCATION_PREFIXES",
)
_LOCK = threading.Lock()


@contextlib.contextmanager
def separate_configuration() -> Iterator[None]:
    """Runs a block with a gin configuration of its own; restores the previous one.

    The block starts without settings, scopes and the caller's hooks. Configurables
    that are registered in it remain registered. The configuration of gin is global:
    during the block, other threads see that of the block. A second block waits for the
    first.
    """
    with _LOCK:
        was_locked = gin.config_is_locked()
        state = [getattr(gin.config, name) for name in _STATE]
        saved = [copy.copy(values) for values in state]
        gin.config._FINALIZE_HOOKS[:] = [
            hook
            for hook in gin.config._FINALIZE_HOOKS
            if hook.__module__ == gin.config.__name__
        ]
        gin.clear_config()
        try:
            with gin.config_scope(None):
                yield
        finally:
            gin.clear_config()  # Also unlocks it.
            for values, saved_values in zip(state, saved, strict=True):
                values.clear()
                add = values.extend if isinstance(values, list) else values.update
                add(saved_values)
            gin.config._set_config_is_locked(was_locked)
