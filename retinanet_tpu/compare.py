r"""Compares evaluations of the same images on one HTML page.

  python -m retinanet_tpu.compare old=run1 new=run2 \
      --annotations=instances_val2017.json --images=val2017 --output=compare.html
  python -m retinanet_tpu.compare old.json new.json other.json \
      --annotations=instances_val2017.json --output=compare.html

Each argument is a JSON file in COCO's results format, such as that of
`evaluate_export --output`, or a model: a run, a checkpoint, or an export of any format.
A model detects in the annotated images, and requires --images. A name before `=` is
shown instead of the path. The first argument is the baseline.

The page has the twelve metrics with their differences, a confidence interval of the
difference of AP, the AP of each class, the cost of each kind of errors, and the images
that got worse or better most, drawn side by side. The page loads no other files. The
metrics are also printed.
"""

import retinanet_tpu.startup.cpu

import os
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf
from absl import flags, logging
from pycocotools.coco import COCO

from retinanet_tpu import detector, errors
from retinanet_tpu.analysis import (
    comparison,
    comparison_page,
    comparison_text,
    image_detections,
    image_reader,
    page_html,
)
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import annotated_images, artifacts, batching
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS

_RESULTS_SUFFIX = ".json"
_CHECKPOINT = "model.ckpt-"


class Input(NamedTuple):
    """An evaluation to compare.

    Attributes:
      name: The name on the page.
      path: The path of a results file or a model.
    """

    name: str
    path: str

    @property
    def is_results(self) -> bool:
        """Returns True for a results file."""
        return self.path.endswith(_RESULTS_SUFFIX)


def define_flags() -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("annotations", None, "The COCO JSON file of the images.")
    flags.DEFINE_string(
        "images", None, "The folder of the images; models require it to detect."
    )
    flags.DEFINE_string("output", None, "The HTML file to write.")
    flags.DEFINE_integer(
        "batch_size",
        8,
        "Images of one size that are processed together.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "max_images",
        12,
        "The most images that got worse, and of those that got better.",
        lower_bound=1,
    )
    flags.mark_flags_as_required(["annotations", "output"])


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
      arguments: The evaluations, the baseline first.
    """
    summary = write_page(
        arguments,
        annotations=FLAGS.annotations,
        images_dir=FLAGS.images,
        output=FLAGS.output,
        batch_size=FLAGS.batch_size,
        max_images=FLAGS.max_images,
    )
    print(summary)
    print(f"The page is {FLAGS.output}")


def write_page(
    arguments: Sequence[str],
    *,
    annotations: str,
    images_dir: str | None,
    output: str,
    batch_size: int = 8,
    max_images: int = 12,
) -> str:
    """Compares evaluations and writes the page; returns the table of the metrics.

    Args:
      arguments: Paths, or names and paths as name=path; the baseline first.
      annotations: The path of the COCO JSON file of the images.
      images_dir: The folder of the images; None to draw boxes on gray.
      output: The path of the page.
      batch_size: The most images of one size that are processed together.
      max_images: The most images that got worse, and of those that got better.
    Raises:
      MissingFileError, UserError: An argument, a file or a model is not valid, or does
        not fit the annotations.
    """
    inputs = parse_inputs(arguments)
    _check(inputs, images_dir)
    page_html.check_output(output)
    truth = coco_metric.ground_truth(annotations)
    detections = read_detections(inputs, truth, images_dir, batch_size=batch_size)
    logging.info("compare | computing differences and intervals")
    compared = comparison.compare(truth, detections)
    for note in comparison_text.coverage_notes(compared):
        logging.warning("compare | %s", note)
    names = [each.name for each in inputs]
    paths = [f"{each.name}: {each.path}" for each in inputs]
    comparison_page.write(
        output,
        compared,
        title=f"Comparison of {', '.join(names[:-1])} and {names[-1]}",
        subtitle="; ".join([f"Against {os.path.basename(annotations)}", *paths]),
        image_fn=image_reader.of_folder(truth, images_dir) if images_dir else None,
        max_images=max_images,
    )
    return comparison_text.table(compared)


def parse_inputs(arguments: Sequence[str]) -> list[Input]:
    """Returns the names and paths of the arguments.

    Without a name, the name is the path without the folders that all such paths share.

    Args:
      arguments: Paths, or names and paths as name=path.
    Raises:
      UserError: There are fewer than two, or two have the same name.
    """
    if len(arguments) < 2:
        raise errors.UserError(
            f"Got {len(arguments)} evaluations; give two or more to compare: "
            "retinanet-tpu compare BASELINE OTHER --annotations=FILE --output=FILE."
        )
    pairs = [_split(argument) for argument in arguments]
    unnamed = [os.path.abspath(path) for name, path in pairs if not name]
    shared = os.path.commonpath([os.path.dirname(path) for path in unnamed] or ["/"])
    inputs = [
        Input(name or os.path.relpath(os.path.abspath(path), shared), path)
        for name, path in pairs
    ]
    names = [each.name for each in inputs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise errors.UserError(
            f"Several evaluations have the name {repeated[0]!r}; give each one another "
            f"name, such as old={inputs[0].path}."
        )
    return inputs


def _split(argument: str) -> tuple[str, str]:
    """Returns name and path; the path of a file may contain "="."""
    name, equals, path = argument.partition("=")
    if not equals or "/" in name or tf.io.gfile.exists(argument):
        return "", argument
    if not name or not path:
        raise errors.UserError(f"{argument!r} lacks a name or a path; give name=path.")
    return name, path


def _check(inputs: Sequence[Input], images_dir: str | None) -> None:
    """Raises UserError or MissingFileError for inputs that cannot be read."""
    for each in inputs:
        if each.is_results and not tf.io.gfile.exists(each.path):
            raise errors.MissingFileError(
                f"{each.path} does not exist; give a JSON file of detections."
            )
        if not each.is_results and _is_other_file(each.path):
            raise errors.UserError(
                f"{each.path} is a file, but no model. The name of a results file must "
                f"end in {_RESULTS_SUFFIX}; rename it."
            )
    models = [each for each in inputs if not each.is_results]
    if models and not images_dir:
        raise errors.UserError(
            f"{models[0].path} is a model, which requires --images, the folder of the "
            "annotated images."
        )


def _is_other_file(path: str) -> bool:
    """Returns True for a file that is no part of a checkpoint and no export."""
    name = os.path.basename(path)
    is_model = name.endswith(artifacts.EXTENSIONS) or _CHECKPOINT in name
    return not is_model and tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path)


def read_detections(
    inputs: Sequence[Input], truth: COCO, images_dir: str | None, *, batch_size: int
) -> dict[str, list[image_detections.ImageDetections]]:
    """Returns the detections of each evaluation by name.

    All files are read and all models are loaded before the first model detects.

    Args:
      inputs: The evaluations.
      truth: The annotations.
      images_dir: The folder of the images; None if there is no model.
      batch_size: The most images of one size that are processed together.
    Raises:
      UserError: A file or a model does not fit the annotations, or an image is missing.
    """
    detections = {
        each.name: image_detections.read_results(each.path, truth)
        for each in inputs
        if each.is_results
    }
    models: dict[str, artifacts.Artifact] = {}
    files: list[annotated_images.ImageFile] = []
    if len(detections) < len(inputs):
        files = annotated_images.find(truth, images_dir or "")
    for each in inputs:
        if not each.is_results:
            artifact = detector.load_artifact(each.path)
            annotated_images.check_categories(artifact.path, artifact.categories, truth)
            models[each.name] = artifact
    for name, artifact in models.items():
        logging.info("compare | %s | %s %s", name, artifact.kind, artifact.path)
        detections[name] = _detect(artifact, files, batch_size)
    return {each.name: detections[each.name] for each in inputs}


def _detect(
    artifact: artifacts.Artifact,
    files: Sequence[annotated_images.ImageFile],
    batch_size: int,
) -> list[image_detections.ImageDetections]:
    meter = batching.Meter("compare", len(files))
    found = [
        image
        for batch, image_ids in annotated_images.detect(
            artifact, files, batch_size=batch_size, meter=meter
        )
        for image in image_detections.from_batch(batch, image_ids)
    ]
    meter.close()
    return found


if __name__ == "__main__":
    define_flags()
    guard.run(main, takes_arguments=True)
