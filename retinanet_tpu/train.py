r"""Trains RetinaNet, scoring checkpoints on the way and at the end.

  python -m retinanet_tpu.train --gin_file=gin_configs/coco_r50_640_30x.gin \
      --model_dir=gs://bucket/run1 --gin_param="DATA_DIR = 'gs://bucket/coco'"

Started again with the same --model_dir it goes on from the latest checkpoint.
--dry_run prints the configuration, counts and shapes; it needs no data and no device.

Exit codes, of which MODEL_DIR/run_state.json says the same:
   0  finished: the last step is trained and saved
   1  failed: an error, which the same command would meet again
   5  failed: a loss or a weight is not finite; the last checkpoint is from before
  42  preempted: stopped by SIGTERM, SIGINT (Ctrl-C), SIGHUP (the terminal is gone) or
      the cloud's notice that it takes the machine away; the last line of the log names
      the step that is saved, start the same command again. Of several workers all stop
      so when one is told to; and when one is lost, the others, which then go on from
      the last checkpoint
"""

import retinanet_tpu.startup.tpu

import contextlib
import functools
import sys

from absl import flags, logging

from retinanet_tpu.estimator import train_and_evaluate, train_step, waits
from retinanet_tpu.estimator.cluster import preemption, worker_group
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables, data_checks, summary

POLL_SECS = 5  # A machine has 30 s from the notice that it is preempted.
EXIT_DIVERGED = 5
EXIT_PREEMPTED = 42  # As TensorFlow's own handler of preemptions has it.

_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would run, and exit.")
_ACCEPT_CHANGES = flags.DEFINE_bool(
    "accept_changes", False, "Go on in --model_dir with a changed configuration."
)


def main() -> None:
    """Runs the command."""
    text = cli.parse_files()
    if _DRY_RUN.value:
        print(text)
        print("\n".join(summary.summarize_run()))
        return
    try:
        host = preemption.find_metadata_host()
        with preemption.PreemptionListener(host, POLL_SECS) as listener:
            _train(text, listener)
    except (
        preemption.Preempted,
        train_step.DivergedError,
        worker_group.LostError,
    ) as error:
        is_diverged = isinstance(error, train_step.DivergedError)
        with contextlib.suppress(OSError):  # The terminal may be gone.
            print(f"error: {error}" if is_diverged else error, file=sys.stderr)
        waits.leave(EXIT_DIVERGED if is_diverged else EXIT_PREEMPTED)


def _train(text, listener):
    run = configurables.make_run(cli.model_dir())
    eval_spec = run.eval_spec if run.plan.evaluate_during_training else None
    train_and_evaluate.check_intervals(run.estimator, run.train_spec, eval_spec)
    with cli.explain_data_errors(run):
        data_checks.check(run)
    cli.check_model_dir(text, run, accept_changes=_ACCEPT_CHANGES.value)
    logging.info("Replicas: %d", run.estimator.num_replicas)
    with cli.explain_data_errors(run):
        train_and_evaluate.train_and_evaluate(
            run.estimator,
            run.train_spec,
            eval_spec,
            stop_reason=listener.reason,
            prepare=functools.partial(cli.write_settings, text, run),
        )


if __name__ == "__main__":
    guard.run(main)
