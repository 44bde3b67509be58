"""Defines the flags of views for the commands that run a model on images."""

from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.serving import artifacts, multi_view

_DEFAULTS = multi_view.Views()


def define(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the flags; not on import, when another command may run.

    Args:
      values: The flags to add to.
    """
    flags.DEFINE_bool(
        "flip",
        _DEFAULTS.flip,
        "Detect in the mirrored image, too, and merge.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "scales",
        None,
        "Sizes of the image relative to the model's input, such as 0.8,1,1.25; "
        "default: 1, or none with --tile_size.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "tile_size", None, "Detect in tiles of this side, px.", flag_values=values
    )
    flags.DEFINE_float(
        "tile_overlap",
        _DEFAULTS.tile_overlap,
        "Part of a tile that at least overlaps the next, from 0 to below 1.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "merge",
        _DEFAULTS.merge,
        list(multi_view.MERGE_FNS),
        "How the detections of several views are merged.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_detections",
        None,
        "Most detections of an image; default: the model's own number.",
        flag_values=values,
    )


def wrap(artifact: artifacts.Artifact, values: flags.FlagValues) -> artifacts.Artifact:
    """Returns the artifact with the views of the flags, and logs them.

    Args:
      artifact: The model.
      values: The parsed flags.
    Raises:
      UserError: A value is wrong, or there is no view.
    """
    settings = multi_view.Views(
        flip=values.flip,
        scales=_parse_scales(values.scales),
        tile_size=values.tile_size,
        tile_overlap=values.tile_overlap,
        merge=values.merge,
        max_detections=values.max_detections,
    )
    if not settings.is_plain:
        logging.info("views | %s", settings)
    return multi_view.wrap(artifact, settings)


def _parse_scales(texts: list[str] | None) -> tuple[float, ...] | None:
    if texts is None:
        return None
    try:
        return tuple(float(text) for text in texts if text)
    except ValueError as error:
        raise errors.UserError(
            f"--scales={','.join(texts)} is not a list of numbers, such as 0.8,1,1.25."
        ) from error
