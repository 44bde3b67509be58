r"""Trains RetinaNet and evaluates checkpoints during training and at the end.

  python -m retinanet_tpu.train --gin_file=gin_configs/coco_r50_640_30x.gin \
      --model_dir=gs://bucket/run1 --gin_param="DATA_DIR = 'gs://bucket/coco'"

If the command is started again with the same --model_dir, it resumes from the latest
checkpoint. --dry_run prints the configuration, counts and shapes; it requires no data
and no device.

Exit codes; MODEL_DIR/run_state.json contains the same state:
   0  finished: the last step is trained and saved
   1  failed: an error; the same command would fail again
   5  failed: a loss or a weight is not finite; the last checkpoint is from before
  42  preempted; start the same command again. The last line of the log contains the
      step that is saved. Causes:
        - SIGTERM, SIGINT (Ctrl-C) or SIGHUP (the terminal is gone)
        - the cloud's notice that it will stop the machine
        - another worker that is stopped; all workers then stop together
        - another worker that is lost; the next start resumes from the last checkpoint
"""

import retinanet_tpu.startup.tpu

import contextlib
import functools
import sys

from absl import flags, logging

from retinanet_tpu.estimator import train_and_evaluate, train_step, waits
from retinanet_tpu.estimator.cluster import preemption, worker_group
from retinanet_tpu.exit_codes import ExitCode
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables, data_checks, mlperf_log, summary

POLL_SECS = 5  # A machine stops 30 s after the notice of its preemption.
_EXIT_CODES: dict[type[Exception], ExitCode] = {
    train_step.DivergedError: ExitCode.DIVERGED,
    preemption.Preempted: ExitCode.PREEMPTED,
    worker_group.LostError: ExitCode.PREEMPTED,
}

_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the configuration, counts and shapes, and exit."
)
_ACCEPT_CHANGES = flags.DEFINE_bool(
    "accept_changes", False, "Continue in --model_dir with a changed configuration."
)


def main() -> None:
    """Runs the command."""
    config_text = cli.parse_files()
    if _DRY_RUN.value:
        print(config_text)
        print("\n".join(summary.summarize_run()))
        return
    try:
        host = preemption.find_metadata_host()
        with preemption.PreemptionListener(host, POLL_SECS) as listener:
            _train(config_text, listener)
    except tuple(_EXIT_CODES) as error:
        code = _EXIT_CODES[type(error)]
        prefix = "" if code == ExitCode.PREEMPTED else "error: "
        with contextlib.suppress(OSError):  # The terminal may be gone.
            print(f"{prefix}{error}", file=sys.stderr)
        waits.leave(code)


def _train(config_text: str, listener: preemption.PreemptionListener) -> None:
    """Trains a run, with all checks of the settings and data before the first step."""
    run = configurables.make_run(cli.model_dir())
    eval_spec = run.eval_spec if run.plan.evaluate_during_training else None
    train_and_evaluate.check_intervals(run.estimator, run.train_spec, eval_spec)
    with cli.explain_data_errors(run):
        data_checks.check(run)
    cli.check_model_dir(config_text, run, accept_changes=_ACCEPT_CHANGES.value)
    logging.info("Replicas: %d", run.estimator.num_replicas)
    with cli.explain_data_errors(run):
        train_spec, eval_spec = mlperf_log.add_log(run, eval_spec)
        train_and_evaluate.train_and_evaluate(
            run.estimator,
            train_spec,
            eval_spec,
            stop_reason=listener.reason,
            prepare=functools.partial(cli.write_settings, config_text, run),
        )
    run.estimator.workers.close()


if __name__ == "__main__":
    guard.run(main, exit_fn=waits.finish)
