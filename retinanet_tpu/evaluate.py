r"""Scores the checkpoints of a training run on COCO, while it trains or afterwards.

  python -m retinanet_tpu.evaluate --model_dir=gs://bucket/run1 [--policy=all]

Runs beside the trainer, on a machine of its own: the run's settings come from
MODEL_DIR/config.gin, its device does not. Each score goes to MODEL_DIR/eval, as a line
of eval.jsonl and as TensorBoard scalars. Started again it goes on; several may run.

  --once             score what is there, and do not wait for the trainer
  --checkpoint=…     score this one, though it may be scored already

Exit codes: 0, the run is finished and its final checkpoint scored (or what there was,
with --once); 1, an error, which a sentence explains; 3, no sign of the trainer for
--timeout_secs; 4, the trainer failed, and what it left is scored; 143, SIGTERM; 129,
SIGHUP (the terminal is gone).
"""

import retinanet_tpu.startup.cpu

import contextlib
import signal
import sys
import time

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.estimator import sidecar, summaries, waits
from retinanet_tpu.estimator.cluster import preemption, strategy
from retinanet_tpu.estimator.model_dir import checkpoints, leases
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables

EXIT_CODES = {
    sidecar.StorageError: 1,
    sidecar.TrainerGoneError: 3,
    sidecar.RunFailedError: 4,
}

_CHECKPOINT = cli.checkpoint_flag()
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where to evaluate.")
_POLICY = flags.DEFINE_enum(
    "policy",
    "latest",
    sidecar.POLICIES,
    "What to score: the newest checkpoint each time, all in rising order, or the "
    "multiples of --every_k_steps and the final one.",
)
_EVERY_K_STEPS = flags.DEFINE_integer("every_k_steps", None, "For --policy=every_k.")
_ONCE = flags.DEFINE_bool("once", False, "Do not wait for the trainer.")
_TIMEOUT_SECS = flags.DEFINE_integer(
    "timeout_secs", 1800, "How long the trainer may be silent.", lower_bound=1
)
_PREEMPTION_SECS = flags.DEFINE_integer(
    "preemption_secs", 86400, "How long a preempted trainer may stay away."
)


def main() -> None:
    """Runs the command."""
    # An orderly end gives leases back; a supervisor stops processes so.
    for number in preemption.ending_signals():
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        _evaluate()
    except SystemExit as stop:
        waits.leave(stop.code)
    except tuple(EXIT_CODES) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_CODES[type(error)])


def _evaluate():
    poll_secs = min(10, _TIMEOUT_SECS.value / 30)
    if not _ONCE.value and not _CHECKPOINT.value:
        _await_run(poll_secs)
    is_cpu = _DEVICE.value == "cpu"
    cli.parse_model_dir(*(["COMPUTE_DTYPE = 'float32'"] if is_cpu else []))
    run = configurables.make_run(
        cli.model_dir(),
        strategy_fn=lambda: strategy.make_strategy(
            _DEVICE.value, num_devices=1, single_process=True
        ),
    )
    with cli.explain_data_errors(run):
        if _CHECKPOINT.value:
            _score_one(run, _CHECKPOINT.value)
            return
        beside = sidecar.Sidecar(
            run.estimator,
            run.eval_spec,
            max_steps=run.train_spec.max_steps,
            policy=_POLICY.value,
            every_k_steps=_EVERY_K_STEPS.value,
            timeout_secs=_TIMEOUT_SECS.value,
            preemption_secs=_PREEMPTION_SECS.value,
            poll_secs=poll_secs,
        )
        if not beside.run(once=_ONCE.value):
            _show_newest()


def _await_run(poll_secs):
    """Waits for config.gin, for a sidecar may be started before the trainer."""
    path = f"{cli.model_dir()}/{cli.CONFIG_FILE}"
    end = time.monotonic() + _TIMEOUT_SECS.value
    if not tf.io.gfile.exists(path):
        logging.warning("No %s yet; waiting for the run to begin", path)
    while not tf.io.gfile.exists(path):
        if time.monotonic() > end:
            raise sidecar.TrainerGoneError(
                f"No {path} came in {_TIMEOUT_SECS.value} s; is --model_dir that of a "
                "run, and was its trainer started?"
            )
        time.sleep(poll_secs)


def _score_one(run, path):
    """Scores a checkpoint wherever it lies."""
    is_of_run = path.rpartition("/")[0] == cli.model_dir()
    with (
        leases.lease_checkpoint(cli.model_dir(), path)
        if is_of_run
        else contextlib.nullcontext()
    ):
        run.estimator.evaluate(run.eval_spec.input_fn, checkpoint_path=path)


def _show_newest():
    """Logs the newest score there is, where nothing was left to score."""
    records = summaries.read_evaluations(f"{cli.model_dir()}/eval")
    if not records and not checkpoints.latest(cli.model_dir()):
        raise errors.MissingFileError(
            f"No checkpoint in {cli.model_dir()}; train first or check --model_dir."
        )
    if not records:
        raise errors.MissingFileError(
            f"No checkpoint in {cli.model_dir()} was scored; the log says why."
        )
    newest = max(records, key=lambda record: record["global_step"])
    try:
        table = coco_metric.table(newest)
        logging.info("%s was scored before\n%s", newest["checkpoint"], table)
    except (KeyError, TypeError, ValueError) as error:
        raise errors.UserError(
            f"{cli.model_dir()}/eval/{summaries.EVALUATIONS} lacks scores of step "
            f"{newest['global_step']} ({error!r}); remove the line to score it anew."
        ) from error


if __name__ == "__main__":
    guard.run(main)
