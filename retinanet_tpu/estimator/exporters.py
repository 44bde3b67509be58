"""Writes SavedModels that appear whole or not at all, and decides which of them stay.

`MODEL_DIR/export/<name>/` holds
  <10-digit time>/   a SavedModel, committed by a rename; servers take the highest
  temp-<time>/       one that is being written, or removed
  exports.json       what the exporter made and has not removed, with step and score

An export is first committed, then listed. What is removed:
- of those listed, what exceeds exports_to_keep: the worst, or the oldest;
- a temp-<time> of more than a day ago, which a killed process left.
Whatever else lies there, such as what `retinanet_tpu.export` wrote, is not touched.
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
    """A line of exports.json."""

    version: str  # name of the directory
    step: int  # of its checkpoint
    value: float | None  # of the metric that it was chosen by


@dataclasses.dataclass(frozen=True)
class BestExporter:
    """Keeps the exports of the checkpoints that scored best.

    Attributes:
      serving_fn: (network, params) -> spec.Serving.
      name: they go to export/<name>.
      metric: a number of the evaluation's results. Of two checkpoints with the same
        the earlier is the better; one that is not a number is not exported.
      is_lower_better: for losses.
      exports_to_keep: how many stay, None for all.
    """

    serving_fn: Callable
    name: str = "best"
    metric: str = "AP"
    is_lower_better: bool = False
    exports_to_keep: int | None = 1

    def export(
        self,
        estimator: Any,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> str | None:
        """Exports a checkpoint that is among the best; see `export_and_prune`.

        Raises:
          UserError: the results have no such metric.
        """
        del is_the_final_export
        if self.metric not in eval_result:
            raise errors.UserError(
                f"BestExporter.metric is '{self.metric}', but an evaluation has "
                f"{sorted(eval_result)}; choose one of them."
            )
        value = eval_result[self.metric]
        if not isinstance(value, int | float) or not math.isfinite(value):
            logging.warning("%s is %s: not exported", self.metric, value)
            return None
        sign = -1 if self.is_lower_better else 1

        def rank(export):
            is_known = export.value is not None  # Else the list was edited.
            return (sign * export.value if is_known else -math.inf, -export.step)

        return export_and_prune(
            self,
            estimator,
            export_path,
            checkpoint_path,
            eval_result,
            value=float(value),
            rank_fn=rank,
        )


@dataclasses.dataclass(frozen=True)
class LatestExporter:
    """Keeps the exports of the checkpoints that were scored last.

    Attributes:
      serving_fn: (network, params) -> spec.Serving.
      name: they go to export/<name>.
      exports_to_keep: how many stay, None for all.
    """

    serving_fn: Callable
    name: str = "latest"
    exports_to_keep: int | None = 5

    def export(
        self,
        estimator: Any,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> str | None:
        """Exports every checkpoint; see `export_and_prune`."""
        del is_the_final_export
        return export_and_prune(
            self, estimator, export_path, checkpoint_path, eval_result
        )


@dataclasses.dataclass(frozen=True)
class FinalExporter:
    """Exports the checkpoint of the last step.

    Attributes:
      serving_fn: (network, params) -> spec.Serving.
      name: it goes to export/<name>.
      exports_to_keep: more than one come of runs that were prolonged.
    """

    serving_fn: Callable
    name: str = "final"
    exports_to_keep: int | None = 1

    def export(
        self,
        estimator: Any,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> str | None:
        """Exports the checkpoint if it is the last one; see `export_and_prune`."""
        if not is_the_final_export:
            return None
        return export_and_prune(
            self, estimator, export_path, checkpoint_path, eval_result
        )


def check_names(exporters: Sequence[Any]) -> None:
    """Raises UserError if two exporters would write to one directory."""
    names = [exporter.name for exporter in exporters]
    if len(set(names)) < len(names) or not all(names):
        raise errors.UserError(
            f"The exporters are named {names}; give each its own name."
        )


def export_all(
    exporters: Sequence[Any],
    estimator: Any,
    checkpoint_path: str,
    eval_result: Mapping[str, Any],
    *,
    is_final: bool,
) -> None:
    """Lets each exporter export what was scored, to MODEL_DIR/export/<name>.

    Called again with the same checkpoint, it does what was left undone. Trainers and
    sidecars that export to one directory take turns.
    """
    for exporter in exporters:
        base_dir = f"{estimator.model_dir}/export/{exporter.name}"
        with leases.directory_lock(base_dir):
            files.remove_temporaries(base_dir)
            exporter.export(estimator, base_dir, checkpoint_path, eval_result, is_final)


def export_and_prune(
    exporter: Any,
    estimator: Any,
    base_dir: str,
    checkpoint_path: str,
    eval_result: Mapping[str, Any],
    *,
    value: float | None = None,
    rank_fn: Callable[[Export], Any] = lambda export: export.step,
) -> str | None:
    """Exports a checkpoint if it ranks among those to keep, and removes the rest.

    Args:
      exporter: has serving_fn and exports_to_keep.
      estimator: has export_saved_model.
      base_dir: of the exports.
      checkpoint_path: what to export. Exported before, it is not exported again.
      eval_result: its scores.
      value: of the metric that it is ranked by.
      rank_fn: higher ranks stay.
    Returns:
      The new directory, None if there is none.
    """
    keep, step = exporter.exports_to_keep, checkpoints.step_of(checkpoint_path)
    listed = list_exports(base_dir)
    better = [e for e in listed if rank_fn(e) > rank_fn(Export("", step, value))]
    is_known = any(export.step == step for export in listed)
    exported = None
    if not is_known and (keep is None or len(better) < keep):
        exported = estimator.export_saved_model(
            base_dir,
            exporter.serving_fn,
            checkpoint_path=checkpoint_path,
            scores=eval_result,
        )
        listed.append(Export(exported.rpartition("/")[2], step, value))
        _write_list(base_dir, listed)
    ranked = sorted(listed, key=rank_fn, reverse=True)
    for export in ranked[keep:] if keep is not None else []:
        _remove(base_dir, export.version)
        listed.remove(export)
        _write_list(base_dir, listed)
    return exported


def list_exports(base_dir: str) -> list[Export]:
    """Returns the exports that are listed and there, in the order they were made.

    What is damaged in the list is left out: its exports stay, and count no more.
    """
    path = f"{base_dir}/{LIST_FILE}"
    content = files.read_if_there(path)
    try:
        records = (
            []
            if content is None
            else [*json_files.parse(content, path, nan_to_none=True)]
        )
        listed = [_export(record) for record in records]
    except (TypeError, ValueError):
        listed = [None]
    if None in listed:
        logging.error(
            "%s is damaged. The exports that it no longer lists stay in %s and are not "
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
    scores: Mapping[str, Any] | None = None,
) -> str:
    """Writes an export to `base_dir/<10-digit time>`, committed by a rename.

    TensorFlow Serving loads the directory whose name is the highest number, so the work
    goes on in `temp-<time>`, which it does not see. On gs:// a rename copies, file by
    file.

    Args:
      serving: what to write.
      base_dir: gets one version more; others stay.
      checkpoint_path: whose weights the module has.
      scores: of the checkpoint, if it was scored.
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
            serving.finish_fn(temporary, checkpoint_path, scores)
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
    found = [re.fullmatch(rf"{prefix}([0-9]{{10}})", name) for name in names]
    return [int(match[1]) for match in found if match]


def _export(record):
    """Returns an entry of the list, None if it is damaged."""
    try:
        export = Export(**record)
    except TypeError:
        return None
    is_version = re.fullmatch(r"[0-9]{10}", str(export.version)) is not None
    is_step = isinstance(export.step, int)
    is_value = isinstance(export.value, int | float | None)
    return export if is_version and is_step and is_value else None


def _remove(base_dir, version):
    """Removes an export; half of one is never to be seen under a number."""
    temporary = f"{base_dir}/temp-{version}"
    files.rename_directory(f"{base_dir}/{version}", temporary)
    files.remove_directory(temporary)


def _write_list(base_dir, exports):
    text = json.dumps([export._asdict() for export in exports], indent=1)
    files.write_whole(f"{base_dir}/{LIST_FILE}", text + "\n")
