"""Compares the engines of `make_strategy.engine` on the CPUs of this machine.

  python tools/benchmarks/engines.py quickstart.gin=quickstart/data \
      bccd_r18.gin=data/bccd [--parts start dispatch memory] [--rounds=3]

Each argument is a gin file and the data directory of its run. The output consists of
Markdown tables, one per part:

  start     start-up and speed of each run: `retinanet-tpu train` in new processes, in
            turn, round after round. The engine pjrt starts twice in a round, without
            and with a compiled program in its cache. Start-up lasts from the start of
            the process to the end of the first loop of --loop_steps steps. The speed
            is that of the following loops.
  dispatch  the host's work for a step whose device time is near zero, with 678
            variables: the step of coco_r50_640_3x.gin assigns as many. And the memory
            after 200 steps, and its growth up to step 2,000
  memory    the memory of the process after 200 steps and at the end, on the first run
            with a tiny network

`a (b to c)` is the median and the range of the rounds. Ratios are formed within a
round. On a machine that runs other programs, the CPU time is more reliable than the
wall time. It is the time of the process on all cores.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_FOLDER = pathlib.Path(__file__).parent
_ENGINES = ("tf.distribute", "pjrt")
_COLD, _WARM = "pjrt, empty cache", "pjrt, filled cache"
_DISPATCH = ("tf.distribute", "pjrt", "program")
# The smallest network that has all parts, on top of any run.
_TINY = (
    "IMAGE_SIZE = (64, 64)",
    "BATCH_SIZE = 4",
    "ResNet.depth = 10",
    "ResNet.width = 8",
    "FPN.num_channels = 16",
    "FPN.min_level = 4",
    "FPN.max_level = 5",
    "Anchors.min_level = 4",
    "Anchors.max_level = 5",
    "Heads.num_channels = 16",
    "Heads.num_convs = 1",
)
_FIRST_MEMORY_STEP = 200


class Run(NamedTuple):
    """A run to train.

    Attributes:
      gin_file: The gin file.
      data_dir: The data directory.
    """

    gin_file: str
    data_dir: str


class Training(NamedTuple):
    """The measurements of a trainer's process.

    Attributes:
      start_secs: The time from the start to the end of the first loop.
      start_cpu_secs: The CPU time of the same.
      step_secs: The time of a step after the first loop.
      step_cpu_secs: The CPU time of a step after the first loop.
      rss_mb: The memory after each loop, by step.
    """

    start_secs: float
    start_cpu_secs: float
    step_secs: float
    step_cpu_secs: float
    rss_mb: Mapping[int, float | None]


def parse_run(text: str) -> Run:
    """Parses GIN_FILE=DATA_DIR.

    Args:
      text: The argument of the command line.
    """
    gin_file, separator, data_dir = text.partition("=")
    if not separator or not pathlib.Path(data_dir).is_dir():
        raise argparse.ArgumentTypeError(
            f"'{text}' is not GIN_FILE=DATA_DIR with an existing directory"
        )
    return Run(gin_file, os.path.abspath(data_dir))


def train(
    run: Run,
    engine: str,
    *,
    num_loops: int,
    loop_steps: int,
    cache: str = "",
    settings: Sequence[str] = (),
) -> Training:
    """Trains a run in a new process and measures it.

    Args:
      run: The run.
      engine: The value of make_strategy.engine.
      num_loops: The number of loops, at least 2.
      loop_steps: The number of steps of a loop.
      cache: The directory of compiled programs; "" for none.
      settings: Further settings of gin.
    Raises:
      RuntimeError: The process failed; contains the end of its output.
    """
    num_steps = num_loops * loop_steps
    settings = [
        f"DATA_DIR = '{run.data_dir}'",
        f"MAX_STEPS = {num_steps}",
        "EVAL_EVERY = None",
        "TrainingPlan.evaluate_during_training = False",
        f"RunConfig.save_checkpoints_steps = {num_steps}",
        f"TPUConfig.iterations_per_loop = {loop_steps}",
        "cosine.warmup_steps = 1",
        f"make_strategy.engine = '{engine}'",
        f"make_strategy.compilation_cache = '{cache}'",
        *settings,
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "measurements.jsonl"
        command = [
            sys.executable,
            str(_FOLDER / "timed_trainer.py"),
            f"--measurements={path}",
            f"--gin_file={run.gin_file}",
            f"--model_dir={folder}/run",
            *(f"--gin_param={setting}" for setting in settings),
        ]
        start = datetime.datetime.now().timestamp()
        _run(command)
        loops = [json.loads(line) for line in path.read_text().splitlines()]
    return summarize(loops, start)


def summarize(loops: Sequence[Mapping[str, float]], start: float) -> Training:
    """Returns the measurements of a process from those of its loops.

    Args:
      loops: The measurements after each loop, from timed_trainer.py.
      start: The start of the process, seconds since 1970.
    """
    first, last = loops[0], loops[-1]
    num_steps = last["step"] - first["step"]
    return Training(
        start_secs=first["time"] - start,
        start_cpu_secs=first["cpu_secs"],
        step_secs=(last["time"] - first["time"]) / num_steps,
        step_cpu_secs=(last["cpu_secs"] - first["cpu_secs"]) / num_steps,
        rss_mb={int(loop["step"]): loop["rss_mb"] for loop in loops},
    )


def measure_starts(
    run: Run, *, num_rounds: int, num_loops: int, loop_steps: int
) -> dict[str, list[Training]]:
    """Trains a run with both engines in turn.

    Args:
      run: The run.
      num_rounds: The number of rounds.
      num_loops: The number of loops of a process, at least 2.
      loop_steps: The number of steps of a loop.

    Returns:
      The measurements of each candidate, one per round. The first one is the reference.
    """
    size = {"num_loops": num_loops, "loop_steps": loop_steps}
    results: dict[str, list[Training]] = {}
    for number in range(num_rounds):
        with tempfile.TemporaryDirectory() as cache:
            measured = {
                _ENGINES[0]: train(run, _ENGINES[0], **size),
                _COLD: train(run, "pjrt", cache=cache, **size),
                _WARM: train(run, "pjrt", cache=cache, **size),
            }
        for name, training in measured.items():
            results.setdefault(name, []).append(training)
            print(f"round {number + 1} | {run.gin_file} | {name} | {training}",
                  file=sys.stderr, flush=True)  # fmt: skip
    return results


def start_table(run: Run, results: Mapping[str, Sequence[Training]]) -> str:
    """Returns the start-up and the speed of a run's engines as Markdown.

    Args:
      run: The run.
      results: The measurements, from `measure_starts`.
    """
    reference = next(iter(results.values()))
    columns = {
        "start_secs": ("start-up s", 1, 1),
        "start_cpu_secs": ("CPU s", 1, 1),
        "step_secs": ("ms/step", 1e3, 0),
        "step_cpu_secs": ("CPU ms/step", 1e3, 0),
    }
    ratios = [f"{title} / {_ENGINES[0]}" for title, *_ in columns.values()]
    titles = [title for title, *_ in columns.values()]
    rows = [[run.gin_file, *titles, *ratios]]
    for name, trainings in results.items():
        cells, quotients = [], []
        for key, (_, factor, digits) in columns.items():
            values = [factor * getattr(training, key) for training in trainings]
            others = [factor * getattr(training, key) for training in reference]
            pairs = zip(values, others, strict=True)
            cells.append(_spread(values, digits))
            quotients.append(_spread([value / other for value, other in pairs], 2))
        rows.append([name, *cells, *quotients])
    return _markdown(rows)


def measure_dispatch(
    *, num_variables: int, num_steps: int, num_rounds: int
) -> dict[str, list[Mapping[str, Any]]]:
    """Measures the host's work for a step; see timed_dispatch.py.

    Args:
      num_variables: The number of variables of the step.
      num_steps: The number of steps of a measurement.
      num_rounds: The number of measurements in a process.

    Returns:
      The measurements of each candidate. The first one includes compilation.
    """
    numbers = [str(n) for n in (num_variables, num_steps, num_rounds)]
    script = str(_FOLDER / "timed_dispatch.py")
    outputs = {
        name: _run([sys.executable, script, name, *numbers]) for name in _DISPATCH
    }
    return {
        name: json.loads(output.splitlines()[-1]) for name, output in outputs.items()
    }


def dispatch_table(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns the host's work for a step as Markdown.

    Args:
      results: The measurements, from `measure_dispatch`.
    """
    titles = ("ms/step", "CPU ms/step", "of which the starting thread", "MB", "growth")
    rows = [["", *titles]]
    for name, (first, *later) in results.items():
        values = [
            _spread([result[key] for result in later], 2)
            for key in ("wall", "cpu", "thread")
        ]
        title = "the program of pjrt alone" if name == "program" else name
        rss_mb, growth = "not measured", "-"
        if first["rss_mb"] is not None:
            rss_mb = f"{first['rss_mb']:,.0f}"
            growth = f"{later[-1]['rss_mb'] - first['rss_mb']:+.1f}"
        rows.append([title, *values, rss_mb, growth])
    return _markdown(rows)


def memory_table(run: Run, *, num_steps: int) -> str:
    """Trains a tiny network with both engines; returns its memory as Markdown.

    Args:
      run: The run.
      num_steps: The number of steps, a multiple of 200 above it.
    """
    rows = [["", f"MB at {_FIRST_MEMORY_STEP}", f"MB at {num_steps}", "difference"]]
    for engine in _ENGINES:
        loop_steps = _FIRST_MEMORY_STEP // 4
        rss_mb = train(
            run,
            engine,
            num_loops=num_steps // loop_steps,
            loop_steps=loop_steps,
            settings=_TINY,
        ).rss_mb
        first, last = rss_mb[_FIRST_MEMORY_STEP], rss_mb[num_steps]
        if first is None or last is None:
            rows.append([engine, "not measured", "not measured", "-"])
        else:
            rows.append(
                [engine, f"{first:,.0f}", f"{last:,.0f}", f"{last - first:+,.0f}"]
            )
    return _markdown(rows)


def _run(command: Sequence[str]) -> str:
    """Returns the output of a command."""
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu", **os.environ}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    if process.returncode:
        output = process.stderr.strip()[-2000:]
        raise RuntimeError(f"{' '.join(command)} failed: {output}")
    return process.stdout


def _spread(values: Sequence[float], digits: int) -> str:
    low, median, high = min(values), statistics.median(values), max(values)
    if len(values) == 1:
        return f"{median:,.{digits}f}"
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="*",
        type=parse_run,
        metavar="GIN_FILE=DATA_DIR",
        help="Gin file and data directory of a run.",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=["start", "dispatch", "memory"],
        default=["start", "dispatch", "memory"],
        help="Parts to measure.",
    )
    parser.add_argument("--rounds", type=int, default=3, help="Number of measurements.")
    parser.add_argument(
        "--loops", type=int, default=4, help="Number of loops of a process."
    )
    parser.add_argument(
        "--loop_steps", type=int, default=5, help="Number of steps of a loop."
    )
    parser.add_argument(
        "--variables",
        type=int,
        default=678,
        help="Number of variables of the step of the part dispatch.",
    )
    parser.add_argument(
        "--memory_steps",
        type=int,
        default=2000,
        help="Number of steps of the part memory, a multiple of 200.",
    )
    flags = parser.parse_args(arguments)
    if not flags.runs and set(flags.parts) != {"dispatch"}:
        parser.error("the parts start and memory require a run, GIN_FILE=DATA_DIR")
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    flags = _flags(arguments)
    today = datetime.date.today().isoformat()
    print(f"{today}, {os.cpu_count()} CPUs, {platform.machine()}", flush=True)
    if "start" in flags.parts:
        for run in flags.runs:
            results = measure_starts(
                run,
                num_rounds=flags.rounds,
                num_loops=flags.loops,
                loop_steps=flags.loop_steps,
            )
            print(f"\n{start_table(run, results)}", flush=True)
    if "dispatch" in flags.parts:
        dispatch = measure_dispatch(
            num_variables=flags.variables, num_steps=200, num_rounds=10
        )
        print(f"\n{dispatch_table(dispatch)}", flush=True)
    if "memory" in flags.parts:
        table = memory_table(flags.runs[0], num_steps=flags.memory_steps)
        print(f"\n{table}", flush=True)


if __name__ == "__main__":
    main()
