"""The gin settings of a run, with this package's configurables and gin files."""

import pathlib
from collections.abc import Sequence

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
    return gin_files.parse(
        files,
        settings,
        known=configurables.CONFIGURABLES,
        ranges=setting_ranges.RANGES,
        saved=saved,
        paths=_PATHS,
        search_path=[GIN_CONFIGS],
        renamed=RENAMED,
    )
