r"""Measures accuracy, size and speed of all formats of an export.

  python -m retinanet_tpu.benchmark --model=run1/export/latest \
      --images=coco/val2017 --annotations=coco/annotations/instances_val2017.json \
      [--checkpoint=run1] [--output=benchmark]

--model is an export, a folder of exports, whose newest version is used, or a file; it
may be repeated. Prints one table. --output saves it as table.md, and all measurements
as results.json.

Each model has a process of its own. Detections in all images are compared with those
of --checkpoint, without it with those of the export's SavedModel. Then the models are
timed in rounds, in which each has a short turn, so that other programs on the machine
slow all alike. A time is from pixels in memory to detections in memory.

Without --annotations no AP is computed. Without --images the images are synthetic, on
which detections mean little. If a model fails, the table contains its error, and the
exit code is 1.
"""

import retinanet_tpu.startup.cpu

import contextlib
import datetime
import functools
import json
import os
import pathlib
import platform
import re
import tempfile
from collections.abc import Sequence

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors, exit_codes
from retinanet_tpu.benchmarking import (
    candidates,
    images as images_module,
    measure,
    processes,
    tables,
)
from retinanet_tpu.data import image_files
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import annotated_images
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS
TABLE_FILE = "table.md"
RESULTS_FILE = "results.json"
# Many short turns meet the load of other programs more evenly than few long ones. A
# second holds several batches of most models.
_TURN_SECS = 1.0
_BUSY_LOAD = 0.5  # This command's own start is below.
_CPU_INFO = pathlib.Path("/proc/cpuinfo")


def _num_threads() -> int:
    """Returns --num_threads or the number of CPUs of this process.

    The defaults of the runtimes differ: TFLite's is one thread.
    """
    if FLAGS.num_threads is not None:
        return int(FLAGS.num_threads)
    if hasattr(os, "sched_getaffinity"):  # Linux only.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _batch_sizes() -> list[int]:
    """Returns the numbers of --batch_sizes.

    Raises:
      UserError: One is not a number from 1, or there is none.
    """
    texts = FLAGS.batch_sizes
    if not texts or not all(re.fullmatch("0*[1-9][0-9]*", text) for text in texts):
        raise errors.UserError(
            f"--batch_sizes={','.join(texts)} must be numbers from 1, such as 1,8."
        )
    return sorted({int(text) for text in texts})


def _make_output(path: str) -> None:
    """Makes the folder of --output, before the work starts.

    Raises:
      UserError: The path is that of a file, or the folder cannot be made.
    """
    if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
        raise errors.UserError(
            f"--output={path} is a file; give a folder for {TABLE_FILE} and "
            f"{RESULTS_FILE}."
        )
    try:
        tf.io.gfile.makedirs(path)
    except tf.errors.OpError as error:
        raise errors.UserError(
            f"--output={path} cannot be made: {error.message}"
        ) from error


def _make_images(stack: contextlib.ExitStack, batch_size: int) -> images_module.Images:
    """Returns the images of the flags.

    Args:
      stack: The context that the files of synthetic images exist in.
      batch_size: The number of images of the largest batch.
    Raises:
      UserError: Images are missing or cannot be read, or the annotations are invalid.
    """
    if FLAGS.annotations and not FLAGS.images:
        raise errors.UserError(
            "--annotations needs --images, the folder of its images."
        )
    if FLAGS.annotations:
        truth = coco_metric.ground_truth(FLAGS.annotations)
        annotated = annotated_images.find(truth, FLAGS.images)
        text = f"{len(annotated)} of {FLAGS.annotations}"
        return images_module.make(annotated, batch_size, truth=truth, description=text)
    if FLAGS.images:
        paths = image_files.find([FLAGS.images])
        text = f"{len(paths)} of {FLAGS.images}, without annotations"
    else:
        logging.warning("benchmark | no --images; measuring on synthetic images")
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        paths = images_module.write_synthetic(folder, batch_size)
        text = f"{len(paths)} synthetic ones, on which detections mean little"
    unannotated = [
        annotated_images.ImageFile(number, path) for number, path in enumerate(paths)
    ]
    return images_module.make(unannotated, batch_size, description=text)


def _models() -> list[candidates.Candidate]:
    """Returns the models of the flags, the checkpoint first."""
    formats = candidates.find(FLAGS.model)
    if FLAGS.checkpoint:
        return [candidates.checkpoint(FLAGS.checkpoint), *formats]
    if not any(candidate.is_saved_model for candidate in formats):
        logging.warning(
            "benchmark | no --checkpoint and no SavedModel to compare detections with"
        )
    return formats


def _description(images: images_module.Images, num_threads: int) -> str:
    """Returns the machine, before it is loaded, and the amount of work in words."""
    height, width = images.timed.shape[1:3]
    machine = f"{datetime.date.today().isoformat()}, {_processor()}"
    if hasattr(os, "getloadavg"):  # Not on Windows.
        load = os.getloadavg()[0]
        machine += f", load {load:.1f} before the start"
        if load > _BUSY_LOAD:
            logging.warning(
                "benchmark | other programs run on this machine (load %.1f); compare "
                "the fastest batches and the CPU times",
                load,
            )
    return (
        f"{machine}, threads: {num_threads}, rounds: {FLAGS.rounds}, batches of "
        f"{height} x {width} px, images: {images.description}"
    )


def _processor() -> str:
    text = _CPU_INFO.read_text() if _CPU_INFO.exists() else ""  # Linux only.
    match = re.search(r"model name\s*: (.*)", text)
    return match[1] if match else platform.processor() or platform.machine()


def _write(results: Sequence[measure.Result], text: str, description: str) -> None:
    """Writes the files of --output."""
    content = {
        "description": description,
        "tensorflow": tf.__version__,
        "results": [tables.to_json(result) for result in results],
    }
    files.write_whole(os.path.join(FLAGS.output, TABLE_FILE), text)
    files.write_whole(
        os.path.join(FLAGS.output, RESULTS_FILE), json.dumps(content, indent=1) + "\n"
    )
    logging.info("benchmark | wrote %s", FLAGS.output)


def main() -> int:
    """Runs the command; returns its exit code."""
    batch_sizes = _batch_sizes()
    if FLAGS.output:
        _make_output(FLAGS.output)
    models = _models()
    num_threads = _num_threads()
    with contextlib.ExitStack() as stack:
        images = _make_images(stack, batch_sizes[-1])
        candidates.check_categories(models, images.truth)
        description = _description(images, num_threads)
        results = measure.run(
            models,
            images,
            measure.Plan(batch_sizes, FLAGS.rounds, _TURN_SECS),
            start_fn=functools.partial(processes.Process, num_threads=num_threads),
        )
    text = f"{description}\n\n{tables.table(results, batch_sizes)}"
    print(text, end="")
    if FLAGS.output:
        _write(results, text, description)
    has_failed = any(result.error is not None for result in results)
    return exit_codes.ExitCode.FAILED if has_failed else exit_codes.ExitCode.OK


def define_flags() -> None:
    """Defines this command's flags; not on import, when another command may run."""
    flags.DEFINE_multi_string(
        "model", None, "Export, folder of exports, or file; may be repeated."
    )
    flags.DEFINE_string("images", None, "Folder of the images, a glob or a file.")
    flags.DEFINE_string("annotations", None, "COCO JSON file of the same images.")
    flags.DEFINE_string(
        "checkpoint", None, "Run or checkpoint to compare detections with."
    )
    flags.DEFINE_list("batch_sizes", ["1", "8"], "Numbers of images of a timed batch.")
    flags.DEFINE_integer(
        "rounds", 7, "Rounds in which each model is timed.", lower_bound=1
    )
    flags.DEFINE_integer(
        "num_threads",
        None,
        "CPU threads of each model; the CPUs of this process by default.",
        lower_bound=1,
    )
    flags.DEFINE_string("output", None, "Folder for table.md and results.json.")
    flags.mark_flag_as_required("model")


if __name__ == "__main__":
    define_flags()
    guard.run(main)
