r"""Trains variants of a run with several seeds and writes a table of their results.

  python -m retinanet_tpu.sweep --gin_file=bccd_r18_256.gin --variants=losses.json \
      --seeds=2 --sweep_dir=runs/losses

The file of variants maps names to gin settings:

  {"classic": [],
   "giou": ["detection_losses.box_loss_fn = @giou_loss",
            "detection_losses.box_weight = 2.0"]}

Each run is a process of `retinanet_tpu.train` in SWEEP_DIR/VARIANT/SEED; --jobs of them
run at the same time. If the command is started again, it skips the finished runs and
resumes the others. Several machines that share SWEEP_DIR divide the runs, with the
flags --shard=0/4 to --shard=3/4.

SWEEP_DIR/table.md has the mean of the seeds and, in brackets, the lowest and the
highest. SWEEP_DIR/results.json has every run. Both are written after each run.
"""

import retinanet_tpu.startup.cpu

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.estimator.cluster import preemption
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.startup import guard
from retinanet_tpu.sweeping import commands, runs, tables
from retinanet_tpu.task import cli, summary

FLAGS = flags.FLAGS
_WAKE_SECS = 1.0


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "variants", None, "A JSON file: lists of gin settings by name.", required=True
    )
    flags.DEFINE_string(
        "sweep_dir", None, "The directory of the runs and of the table.", required=True
    )
    flags.DEFINE_integer(
        "seeds", 1, "The number of seeds; they are 0, 1, 2, ...", lower_bound=1
    )
    flags.DEFINE_integer(
        "jobs", 1, "The number of runs at the same time.", lower_bound=1
    )
    flags.DEFINE_string(
        "shard", "0/1", "The runs of this machine, INDEX/NUMBER of machines."
    )
    flags.DEFINE_string(
        "split",
        None,
        "Evaluate the last checkpoint of each run once on this split, and tabulate "
        "that.",
    )


def main() -> None:
    """Runs the command."""
    table = sweep(
        FLAGS.variants,
        FLAGS.sweep_dir,
        num_seeds=FLAGS.seeds,
        num_jobs=FLAGS.jobs,
        shard=FLAGS.shard,
        split=FLAGS.split,
    )
    print(table)


def sweep(
    variants_path: str,
    sweep_dir: str,
    *,
    num_seeds: int = 1,
    num_jobs: int = 1,
    shard: str = "0/1",
    split: str | None = None,
) -> str:
    """Runs the variants of the run that --gin_file and --gin_param configure.

    Args:
      variants_path: A JSON file, see `runs.read_variants`.
      sweep_dir: The directory of the runs.
      num_seeds: The number of runs of a variant.
      num_jobs: The number of runs at the same time.
      shard: INDEX/NUMBER: this process does every NUMBER-th run, from INDEX.
      split: The split on which the last checkpoint of each run is evaluated, or None.
    Returns:
      The table.
    Raises:
      UserError: A setting is wrong, or runs failed. The other runs are finished first.
      SystemExit: This process, or a run, was asked to stop.
    """
    index, count = _parse_shard(shard)
    sweep_dir = sweep_dir.rstrip("/")
    files.check_path(sweep_dir, "--sweep_dir")
    if "://" in sweep_dir:
        raise errors.UserError(
            f"--sweep_dir is {sweep_dir}; it must be a local directory or one that is "
            "mounted, because the processes write their messages there."
        )
    variants = runs.read_variants(variants_path)
    for name, settings in variants.items():
        cli.parse_files(*settings)
        summary.summarize_run()  # An invalid setting must not stop the last run.
        logging.info("Variant %s: %s", name, "; ".join(settings) or "no settings")
    tf.io.gfile.makedirs(sweep_dir)
    all_runs = [
        runs.Run(sweep_dir, name, seed)
        for seed in range(num_seeds)
        for name in variants
    ]
    own_runs = all_runs[index::count]
    flag_values = {
        name: [*_given_flags(), *map(_param, settings)]
        for name, settings in variants.items()
    }
    for run in own_runs:
        run.check_settings(flag_values[run.variant])
    for run in finish_all(own_runs, flag_values, split, num_jobs):
        tables.write(sweep_dir, all_runs, split)
        logging.info("%s: %s", run.name, "done" if run.is_done(split) else "failed")
    failed = [run for run in own_runs if not run.is_done(split)]
    if failed:
        raise errors.UserError(
            f"{len(failed)} of {len(own_runs)} runs failed: "
            f"{', '.join(run.name for run in failed)}. The cause is in "
            f"{failed[0].log}. Start the same command again to resume them."
        )
    return tables.write(sweep_dir, all_runs, split)


def finish_all(
    own_runs: Sequence[runs.Run],
    flag_values: Mapping[str, Sequence[str]],
    split: str | None,
    num_jobs: int,
) -> Iterator[runs.Run]:
    """Finishes the runs, several at the same time, and yields each once it has ended.

    Args:
      own_runs: The runs, the first to start first.
      flag_values: The flags of the trainer by variant.
      split: The split to evaluate, or None.
      num_jobs: The number of runs at the same time.
    Raises:
      SystemExit: This process, or a run, was asked to stop. All runs have saved.
    """
    running = commands.Commands(share_device=num_jobs > 1)
    with (
        preemption.handle_signals(running.stop),
        futures.ThreadPoolExecutor(num_jobs) as pool,
    ):
        started = {
            pool.submit(runs.finish, run, flag_values[run.variant], split, running): run
            for run in own_runs
        }
        try:
            while started:
                # Wakes up, because a handler only runs while the main thread does, and
                # the system may deliver a signal to another thread.
                done, _ = futures.wait(
                    started, _WAKE_SECS, return_when=futures.FIRST_COMPLETED
                )
                for future in done:
                    future.result()
                    yield started.pop(future)
        except BaseException:
            running.stop()  # Otherwise the pool would finish all runs first.
            raise


def _param(setting: str) -> str:
    return f"--gin_param={setting}"


def _given_flags() -> list[str]:
    """Returns the flags that all runs share."""
    gin_files = [f"--gin_file={path}" for path in cli.GIN_FILE.value]
    return gin_files + list(map(_param, cli.GIN_PARAM.value))


def _parse_shard(text: str) -> tuple[int, int]:
    """Returns the index and the number of machines.

    Raises:
      UserError: The text is not two numbers in order.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not 0 <= index < count:
        raise errors.UserError(
            f"--shard is {text!r}; it must be INDEX/NUMBER with 0 <= INDEX < NUMBER, "
            "such as 0/4."
        )
    return index, count


if __name__ == "__main__":
    define_flags()
    guard.run(main)
