"""Matplotlib, an optional package, for the commands that draw charts."""

from retinanet_tpu import errors

try:
    import matplotlib

    matplotlib.use("Agg")  # Draws without a screen.
    from matplotlib import pyplot, ticker
except ImportError as error:
    pyplot = ticker = None  # type: ignore[assignment]  # check_installed raises.
    _REASON = str(error)


def check_installed() -> None:
    """Checks that matplotlib is installed; call this before work that takes long.

    Raises:
      MissingPackageError: matplotlib cannot be imported.
    """
    if pyplot is None:
        raise errors.MissingPackageError(
            f"Charts need matplotlib ({_REASON}): pip install -e '.[plots]'"
        )
