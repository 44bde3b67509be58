"""Matplotlib for the tools that draw charts; an optional package."""

from retinanet_tpu import errors

try:
    import matplotlib

    matplotlib.use("Agg")  # Draws without a screen.
    from matplotlib import pyplot, ticker
except ImportError as error:
    pyplot = ticker = None
    _REASON = str(error)


def check_installed() -> None:
    """Checks that charts can be drawn; call this before work that takes long.

    Raises:
      MissingPackageError: matplotlib cannot be imported.
    """
    if pyplot is None:
        raise errors.MissingPackageError(
            f"Charts need matplotlib ({_REASON}): pip install -e '.[plots]'"
        )
