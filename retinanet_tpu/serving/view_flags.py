"""Defines the flags of views for the commands that run a model on images.

Flips and scales are also called test-time augmentation (TTA).
"""

from typing import TypeVar

from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.serving import artifacts, multi_view

_Value = TypeVar("_Value")

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
        None,
        "Part of a tile that at least overlaps the next, from 0 to below 1; default: "
        f"{_DEFAULTS.tile_overlap}.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "merge",
        None,
        list(multi_view.MERGE_FNS),
        f"How the detections of several views are merged; default: {_DEFAULTS.merge}.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "merge_iou",
        None,
        "IoU above which boxes of two views are of one object; default: "
        f"{_DEFAULTS.iou_threshold}.",
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
      UserError: A value is wrong, there is no view, or a flag has no effect.
    """
    settings = multi_view.Views(
        flip=values.flip,
        scales=_parse_scales(values.scales),
        tile_size=values.tile_size,
        tile_overlap=_or(values.tile_overlap, _DEFAULTS.tile_overlap),
        merge=_or(values.merge, _DEFAULTS.merge),
        iou_threshold=_or(values.merge_iou, _DEFAULTS.iou_threshold),
        max_detections=values.max_detections,
    )
    # None shows that a flag is not set.
    of_several = ("tile_overlap", "merge", "merge_iou")
    unused = [name for name in of_several if getattr(values, name) is not None]
    if unused and not settings.has_several:
        raise errors.UserError(
            f"--{unused[0]} has no effect without further views; add --flip, --scales "
            "or --tile_size, or leave it out."
        )
    if not settings.is_plain:
        logging.info("views | %s", settings)
    return multi_view.wrap(artifact, settings)


def _or(value: _Value | None, default: _Value) -> _Value:
    return default if value is None else value


def _parse_scales(texts: list[str] | None) -> tuple[float, ...] | None:
    if texts is None:
        return None
    try:
        return tuple(float(text) for text in texts if text)
    except ValueError as error:
        raise errors.UserError(
            f"--scales={','.join(texts)} is not a list of numbers, such as 0.8,1,1.25."
        ) from error
