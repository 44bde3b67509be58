"""Writes SavedModels atomically, and decides which of them to keep.

`MODEL_DIR/export/<name>/` contains
  <10-digit time>/   a SavedModel, committed by a rename; servers load the highest
  temp-<time>/       an export that is being written or removed
  exports.json       the exports of this exporter, with step and metric

An export is first committed, then listed. Removed are
- the listed exports above exports_to_keep, the worst or the oldest first;
- a temp-<time> that is older than a day, which a killed process left.
Other files there, such as the exports of `retinanet_tpu.export`, are not touched.
"""

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, json_files
from retinanet_tpu.estimator import log_levels, spec
from retinanet_tpu.estimator.model_dir import checkpoints, files, leases

LIST_FILE = "exports.json"
_REMAINS_SECS = 86400  # No export takes a day, and no two clocks differ by one.


class Export(NamedTuple):
    """An entry of exports.json.

    Attributes:
      version: The name of the directory.
      step: The step of the checkpoint.
      value: The metric that the export was ranked by; None if it is ranked by step.
    """

    version: str
    step: int
    value: float | None


class Selection(NamedTuple):
    """The decision to export a checkpoint.

    Attributes:
      value: The metric to rank the export by; None if it is ranked by step.
    """

    value: float | None = None


# (results of the evaluation, is the final checkpoint) -> decision; None: no export
SelectFn = Callable[[Mapping[str, Any], bool], Selection | None]
# export -> rank; the exports of the highest ranks are kept
RankFn = Callable[[Export], tuple[float, ...]]


@dataclasses.dataclass(frozen=True)
class Exporter:
    """An exporter of evaluated checkpoints, which keeps those of the highest ranks.

    Attributes:
      serving_fn: (network, params) -> spec.Serving.
      name: The name of the directory, export/<name>.
      exports_to_keep: The number of exports to keep; None keeps all.
      select_fn: Decides whether a checkpoint may be exported.
      rank_fn: Ranks the exports.
    """

    serving_fn: spec.ServingFn
    name: str
    exports_to_keep: int | None
    select_fn: SelectFn
    rank_fn: RankFn

    def export(
        self,
        estimator: spec.SupportsExport,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> str | None:
        """Exports a checkpoint if it ranks among those to keep, and removes the rest.

        Args:
          estimator: Writes the export.
          export_path: The directory of the exports.
          checkpoint_path: The checkpoint. If it was exported before, it is not exported
            again.
          eval_result: The results of its evaluation.
          is_the_final_export: Whether it is the last checkpoint of the run.
        Returns:
          The new directory, or None.
        Raises:
          UserError: The results do not have the metric.
        """
        selection = self.select_fn(eval_result, is_the_final_export)
        if selection is None:
            return None
        keep = self.exports_to_keep
        new = Export("", checkpoints.step_of(checkpoint_path), selection.value)
        listed = list_exports(export_path)
        better = [e for e in listed if self.rank_fn(e) > self.rank_fn(new)]
        is_exported = any(export.step == new.step for export in listed)
        directory = None
        if not is_exported and (keep is None or len(better) < keep):
            directory = estimator.export_saved_model(
                export_path,
                self.serving_fn,
                checkpoint_path=checkpoint_path,
                eval_result=eval_result,
            )
            listed.append(new._replace(version=directory.rpartition("/")[2]))
            _write_list(export_path, listed)
        ranked = sorted(listed, key=self.rank_fn, reverse=True)
        for export in ranked[keep:] if keep is not None else []:
            _remove(export_path, export.version)
            listed.remove(export)
            _write_list(export_path, listed)
        return directory


def BestExporter(
    serving_fn: spec.ServingFn,
    name: str = "best",
    metric: str = "AP",
    is_lower_better: bool = False,
    exports_to_keep: int | None = 1,
) -> Exporter:
    """Returns an exporter that keeps the checkpoints with the best metric.

    Args:
      serving_fn: (network, params) -> spec.Serving.
      name: The name of the directory, export/<name>.
      metric: The name of a number in the results of an evaluation. Of two checkpoints
        with the same number the earlier is the better. A checkpoint whose metric is not
        a finite number is not exported.
      is_lower_better: Whether a lower metric is better, such as for a loss.
      exports_to_keep: The number of exports to keep; None keeps all.
    """
    return Exporter(
        serving_fn,
        name=name,
        exports_to_keep=exports_to_keep,
        select_fn=_SelectByMetric(metric),
        rank_fn=_lowest_first if is_lower_better else _highest_first,
    )


def LatestExporter(
    serving_fn: spec.ServingFn,
    name: str = "latest",
    exports_to_keep: int | None = 5,
) -> Exporter:
    """Returns an exporter that keeps the checkpoints that were evaluated last.

    Args:
      serving_fn: (network, params) -> spec.Serving.
      name: The name of the directory, export/<name>.
      exports_to_keep: The number of exports to keep; None keeps all.
    """
    return Exporter(
        serving_fn,
        name=name,
        exports_to_keep=exports_to_keep,
        select_fn=_select_all,
        rank_fn=_newest_first,
    )


def FinalExporter(
    serving_fn: spec.ServingFn,
    name: str = "final",
    exports_to_keep: int | None = 1,
) -> Exporter:
    """Returns an exporter of the checkpoint of the last step.

    Args:
      serving_fn: (network, params) -> spec.Serving.
      name: The name of the directory, export/<name>.
      exports_to_keep: The number of exports to keep, None for all. A run has several if
        max_steps was raised after its end.
    """
    return Exporter(
        serving_fn,
        name=name,
        exports_to_keep=exports_to_keep,
        select_fn=_select_final,
        rank_fn=_newest_first,
    )


@dataclasses.dataclass(frozen=True)
class _SelectByMetric:
    """A selection of the checkpoints whose metric is a finite number."""

    metric: str

    def __call__(
        self, eval_result: Mapping[str, Any], is_final: bool
    ) -> Selection | None:
        if self.metric not in eval_result:
            raise errors.UserError(
                f"BestExporter.metric is '{self.metric}', but the results of an "
                f"evaluation are {sorted(eval_result)}; choose one of them."
            )
        value = eval_result[self.metric]
        if not isinstance(value, int | float) or not math.isfinite(value):
            logging.warning("%s is %s: not exported", self.metric, value)
            return None
        return Selection(float(value))


def _select_all(eval_result, is_final):
    return Selection()


def _select_final(eval_result, is_final):
    return Selection() if is_final else None


def _highest_first(export):
    # None if the list was edited.
    value = -math.inf if export.value is None else export.value
    return (value, -export.step)


def _lowest_first(export):
    # None if the list was edited.
    value = math.inf if export.value is None else export.value
    return (-value, -export.step)


def _newest_first(export):
    return (export.step,)


def check_names(exporters: Sequence[spec.CheckpointExporter]) -> None:
    """Checks that each exporter has a directory of its own.

    Raises:
      UserError: Two exporters have the same name, or one has none.
    """
    names = [exporter.name for exporter in exporters]
    if len(set(names)) < len(names) or not all(names):
        raise errors.UserError(
            f"The exporters are named {names}; give each its own name."
        )


def export_all(
    exporters: Sequence[spec.CheckpointExporter],
    estimator: spec.SupportsExport,
    checkpoint_path: str,
    eval_result: Mapping[str, Any],
    *,
    is_final: bool,
) -> None:
    """Calls each exporter with an evaluated checkpoint.

    A second call with the same checkpoint does what the first left undone. Trainers and
    sidecars that export to one directory take turns.

    Args:
      exporters: Each exports to MODEL_DIR/export/<name>.
      estimator: Writes the exports.
      checkpoint_path: The checkpoint.
      eval_result: The results of its evaluation.
      is_final: Whether it is the last checkpoint of the run.
    """
    for exporter in exporters:
        base_dir = f"{estimator.model_dir}/export/{exporter.name}"
        with leases.directory_lock(base_dir):
            files.remove_temporaries(base_dir)
            exporter.export(estimator, base_dir, checkpoint_path, eval_result, is_final)


def list_exports(base_dir: str) -> list[Export]:
    """Returns the listed exports that exist, in the order of their creation.

    Corrupt entries of the list are left out. Their exports stay, and no longer count.
    """
    path = f"{base_dir}/{LIST_FILE}"
    content = files.read_if_there(path)
    try:
        records = []
        if content is not None:
            records = list(json_files.parse(content, path, nan_to_none=True))
        listed = [_parse_export(record) for record in records]
    except (TypeError, ValueError):
        listed = [None]
    if None in listed:
        logging.error(
            "%s is corrupt. The exports that it no longer lists stay in %s and are not "
            "compared with new ones; remove those that you do not need",
            path,
            base_dir,
        )
    exports = [export for export in listed if export is not None]
    return [e for e in exports if tf.io.gfile.isdir(f"{base_dir}/{e.version}")]


def export_saved_model(
    serving: spec.Serving,
    base_dir: str,
    checkpoint_path: str,
    eval_result: Mapping[str, Any] | None = None,
) -> str:
    """Writes an export to `base_dir/<10-digit time>`, committed by a rename.

    TensorFlow Serving loads the directory whose name is the highest number. Therefore
    the files are first written to `temp-<time>`, which it ignores. On gs:// a rename
    copies file by file.

    Args:
      serving: The content.
      base_dir: The directory of the exports; existing ones stay.
      checkpoint_path: The checkpoint whose weights the module has.
      eval_result: The results of its evaluation, if there are any.
    Returns:
      The new directory. If anything fails, there is none.
    """
    version = max([int(time.time()), *(v + 1 for v in _numbers(base_dir, ""))])
    for remains in _numbers(base_dir, "temp-"):
        if remains < version - _REMAINS_SECS:
            files.remove_directory(f"{base_dir}/temp-{remains}")
    temporary = f"{base_dir}/temp-{version}"
    try:
        _write(serving, temporary)
        if serving.finish_fn:
            serving.finish_fn(temporary, checkpoint_path, eval_result)
    except BaseException:
        files.remove_directory(temporary)
        raise
    files.rename_directory(temporary, f"{base_dir}/{version}")
    return f"{base_dir}/{version}"


def _write(serving, directory):
    if serving.signatures:
        signatures = dict(serving.signatures)
        with log_levels.suppress_info_logs():
            tf.saved_model.save(serving.module, directory, signatures=signatures)
    tf.io.gfile.makedirs(f"{directory}/assets.extra")
    for name, text in serving.assets_extra.items():
        with tf.io.gfile.GFile(f"{directory}/assets.extra/{name}", "w") as file:
            file.write(text)


def _numbers(base_dir, prefix):
    """Returns the numbers of the directories `<prefix><10 digits>`."""
    names = files.list_directory(base_dir)
    matches = [re.fullmatch(rf"{prefix}([0-9]{{10}})", name) for name in names]
    return [int(match[1]) for match in matches if match]


def _parse_export(record):
    """Returns an entry of the list, None if it is corrupt."""
    try:
        export = Export(**record)
    except TypeError:
        return None
    is_version = re.fullmatch(r"[0-9]{10}", str(export.version)) is not None
    is_step = isinstance(export.step, int)
    is_value = isinstance(export.value, int | float | None)
    return export if is_version and is_step and is_value else None


def _remove(base_dir, version):
    """Removes an export; a partial one never has a number as its name."""
    temporary = f"{base_dir}/temp-{version}"
    files.rename_directory(f"{base_dir}/{version}", temporary)
    files.remove_directory(temporary)


def _write_list(base_dir, exports):
    text = json.dumps([export._asdict() for export in exports], indent=1)
    files.write_whole(f"{base_dir}/{LIST_FILE}", text + "\n")
