r"""Evaluates the checkpoints of a training run with the COCO metric.

  python -m retinanet_tpu.evaluate --model_dir=gs://bucket/run1 [--policy=all]

The command is a sidecar of the trainer and may run on another machine. It reads the
settings of the run from MODEL_DIR/config.gin, except the device. It writes the results
to MODEL_DIR/eval: lines of eval.jsonl and TensorBoard scalars. If it is started again,
it resumes. Several sidecars may run at the same time.

  --split=test       evaluate this split; the results are in MODEL_DIR/eval_test
  --once             evaluate the existing checkpoints that --policy selects, and do not
                     wait for the trainer
  --checkpoint=…     evaluate this checkpoint, even if it is already evaluated

Exit codes:
    0  the run is finished and its final checkpoint is evaluated; with --once, the
       existing checkpoints that --policy selects are evaluated
    1  an error; the message contains the remedy
    3  the trainer has been silent for --timeout_secs
    4  the trainer failed; its checkpoints are evaluated
  129  stopped by SIGHUP (the terminal is gone)
  143  stopped by SIGTERM
"""

import retinanet_tpu.startup.cpu

import signal
import sys
import time
from typing import Literal

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.estimator import sidecar, summaries, waits
from retinanet_tpu.estimator.cluster import preemption, strategy
from retinanet_tpu.estimator.model_dir import checkpoints, leases
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.exit_codes import ExitCode
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables
from retinanet_tpu.task.run import Run

_EXIT_CODES: dict[type[Exception], ExitCode] = {
    sidecar.StorageError: ExitCode.FAILED,
    sidecar.TrainerGoneError: ExitCode.TRAINER_GONE,
    sidecar.RunFailedError: ExitCode.TRAINER_FAILED,
}

_CHECKPOINT = cli.checkpoint_flag()
_SPLIT = flags.DEFINE_string(
    "split",
    None,
    "The split to evaluate, with results in MODEL_DIR/eval_SPLIT; default: the run's "
    "eval_split, with results in MODEL_DIR/eval.",
)
_DEVICE = flags.DEFINE_enum(
    "device", "cpu", ["cpu", "gpu"], "The device that evaluates."
)
_POLICY = flags.DEFINE_enum(
    "policy",
    "latest",
    sidecar.POLICIES,
    "Which checkpoints to evaluate: always the newest, all in rising order, or those "
    "of multiples of --every_k_steps and the final one.",
)
_EVERY_K_STEPS = flags.DEFINE_integer(
    "every_k_steps", None, "The interval of --policy=every_k."
)
_ONCE = flags.DEFINE_bool(
    "once", False, "Evaluate the existing checkpoints; do not wait for the trainer."
)
_TIMEOUT_SECS = flags.DEFINE_integer(
    "timeout_secs", 1800, "The seconds that the trainer may be silent.", lower_bound=1
)
_PREEMPTION_SECS = flags.DEFINE_integer(
    "preemption_secs", 86400, "The seconds that a preempted trainer may be absent."
)


def main() -> None:
    """Runs the command."""
    # Supervisors stop processes with these signals. SystemExit releases the leases.
    for number in preemption.stop_signals():
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        _evaluate()
    except SystemExit as stop:
        if not isinstance(stop.code, int):  # A message: Python prints it.
            raise
        waits.leave(stop.code)
    except tuple(_EXIT_CODES) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_EXIT_CODES[type(error)])


def _evaluate() -> None:
    """Runs the sidecar, or evaluates the checkpoint of --checkpoint."""
    poll_secs = min(10, _TIMEOUT_SECS.value / 30)
    if not _ONCE.value and not _CHECKPOINT.value:
        _await_run(poll_secs)
    device: Literal["cpu", "gpu"] = "gpu" if _DEVICE.value == "gpu" else "cpu"
    settings = ["COMPUTE_DTYPE = 'float32'"] if device == "cpu" else []
    if _SPLIT.value:
        settings.append(f"Data.eval_split = {_SPLIT.value!r}")
    cli.parse_model_dir(*settings)
    run = configurables.make_run(
        cli.model_dir(),
        strategy_fn=lambda: strategy.make_strategy(
            device, num_devices=1, single_process=True
        ),
    )
    eval_spec = run.eval_spec
    if _SPLIT.value:  # Its results do not select what is exported.
        eval_spec = eval_spec._replace(name=_SPLIT.value, exporters=())
    with cli.explain_data_errors(run):
        if _CHECKPOINT.value:
            _evaluate_one(run, _CHECKPOINT.value)
            return
        run_sidecar = sidecar.Sidecar(
            run.estimator,
            eval_spec,
            max_steps=run.train_spec.max_steps,
            policy=_POLICY.value,
            every_k_steps=_EVERY_K_STEPS.value,
            timeout_secs=_TIMEOUT_SECS.value,
            preemption_secs=_PREEMPTION_SECS.value,
            poll_secs=poll_secs,
        )
        if not run_sidecar.run(once=_ONCE.value):
            _log_newest_results()


def _await_run(poll_secs: float) -> None:
    """Waits for config.gin, because a sidecar may be started before the trainer."""
    path = f"{cli.model_dir()}/{cli.CONFIG_FILE}"
    end = time.monotonic() + _TIMEOUT_SECS.value
    if not tf.io.gfile.exists(path):
        logging.warning("No %s yet; waiting for the run to start", path)
    while not tf.io.gfile.exists(path):
        if time.monotonic() > end:
            raise sidecar.TrainerGoneError(
                f"{path} did not appear within {_TIMEOUT_SECS.value} s; check that "
                "--model_dir is the directory of a run and that its trainer is started."
            )
        time.sleep(poll_secs)


def _evaluate_one(run: Run, path: str) -> None:
    """Evaluates one checkpoint, which may be outside the model_dir."""
    with leases.lease_if_of_run(cli.model_dir(), path):
        run.estimator.evaluate(
            run.eval_spec.input_fn, checkpoint_path=path, name=_SPLIT.value
        )


def _log_newest_results() -> None:
    """Logs the newest results; for a start that had nothing to evaluate.

    Raises:
      MissingFileError: There is no checkpoint or none was evaluated.
      UserError: The newest line of eval.jsonl lacks results.
    """
    folder = summaries.eval_dir(cli.model_dir(), _SPLIT.value)
    records = summaries.read_evaluations(folder)
    if not records and not checkpoints.latest(cli.model_dir()):
        raise errors.MissingFileError(
            f"No checkpoint in {cli.model_dir()}; train first or check --model_dir."
        )
    if not records:
        raise errors.MissingFileError(
            f"No checkpoint in {cli.model_dir()} was evaluated; see the log."
        )
    newest = max(records, key=lambda record: record["global_step"])
    try:
        table = coco_metric.table(newest)
        logging.info("%s is already evaluated\n%s", newest["checkpoint"], table)
    except (KeyError, TypeError, ValueError) as error:
        raise errors.UserError(
            f"{folder}/{summaries.EVALUATIONS} lacks results of step "
            f"{newest['global_step']} ({error!r}); remove the line to "
            "evaluate it again."
        ) from error


if __name__ == "__main__":
    guard.run(main, exit_fn=waits.finish)
