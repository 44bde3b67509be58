"""The gin settings of a run, with this package's configurables and gin files."""

import pathlib
import re
from collections.abc import Sequence

from retinanet_tpu import errors
from retinanet_tpu.estimator import gin_files
from retinanet_tpu.model.pretrained import loading
from retinanet_tpu.task import configurables, setting_ranges
from retinanet_tpu.task.renamed_settings import RENAMED

# Relative paths become absolute, so that a run can be resumed and evaluated from any
# working directory. The values are no paths.
_PATHS: dict[str, tuple[str, ...]] = {
    "Data.dir": (),
    "WarmStartSettings.checkpoint": (),
    "make_run.backbone_checkpoint": (loading.IMAGENET,),
}
# gin ignores a setting without a message if the caller passes the parameter. These are
# passed to the network and to its parts, from the settings in the values.
_PASSED = {
    "num_classes": "NUM_CLASSES",
    "num_anchors": "Anchors.num_scales and Anchors.aspect_ratios",
    "box_coder": "Anchors.box_coder",
    "norm_fn": "RetinaNet.norm_fn, or own_norm_fn of FPN or Heads,",
    "seed": "SEED",
}
_PARTS = (
    *("RetinaNet", "Heads", "ResNet", "EfficientNet", "SpineNet", "MobileNetV3"),
    *("MobileDet", "Identity", "FPN", "PooledFPN", "BiFPN", "BalancedFeatures"),
)
_SET_BY_GIN = ("RetinaNet.norm_fn", "RetinaNet.seed")
_PACKAGE = pathlib.Path(__file__).parents[1]
# A wheel contains gin_configs/; in a checkout it lies beside the package.
_CANDIDATES = [parent / "gin_configs" for parent in (_PACKAGE, _PACKAGE.parent)]
GIN_CONFIGS = str(next(filter(pathlib.Path.is_dir, _CANDIDATES), _CANDIDATES[0]))


def parse(
    files: Sequence[str], settings: Sequence[str], *, saved: str | None = None
) -> str:
    """Reads gin files and single settings; see `gin_files.parse`.

    Args:
      files: Paths, or names of files in GIN_CONFIGS.
      settings: Settings such as "MAX_STEPS = 100".
      saved: The path of a configuration that a run saved, read before the others.
    Returns:
      The whole configuration.
    Raises:
      MissingFileError: A file does not exist.
      UserError: A setting is wrong.
    """
    text = gin_files.parse(
        files,
        settings,
        known=configurables.CONFIGURABLES,
        ranges=setting_ranges.RANGES,
        saved=saved,
        paths=_PATHS,
        search_path=[GIN_CONFIGS],
        renamed=RENAMED,
    )
    # Saved settings cannot be corrected, and did train the run.
    _check_effect(text if saved is None else "\n".join(settings), text)
    return text


def _check_effect(checked: str, text: str) -> None:
    """Raises UserError for a setting of a parameter that the caller passes.

    A user's own network or neck may call the parts with other arguments, so the
    settings are not checked if the configuration refers to anything from elsewhere.

    Args:
      checked: The settings to check.
      text: The whole configuration.
    """
    references = {gin_files.last_name(path) for path in re.findall(r"@([\w./]+)", text)}
    if references - configurables.CONFIGURABLES.keys():
        return
    for path, parameter in re.findall(r"^([\w./]+)\.(\w+) *=", checked, re.MULTILINE):
        part = gin_files.last_name(path)
        setting = f"{part}.{parameter}"
        if part in _PARTS and parameter in _PASSED and setting not in _SET_BY_GIN:
            raise errors.UserError(
                f"{setting} has no effect, because {part} gets {parameter} from "
                f"another setting; set {_PASSED[parameter]} instead."
            )
