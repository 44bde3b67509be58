r"""Measures what 8 bits cost a run, before and after quantization-aware training.

  python tools/benchmarks/quantization.py --model_dir=runs/lite0 [--steps=300] \
      [--gin_param="cosine.base = 0.0001" …]

The command trains a quantized run of --steps steps in MODEL_DIR_int8, which starts from
the last checkpoint of MODEL_DIR. --steps=0 uses the existing one. --gin_param sets its
settings, such as a tenth of the learning rate. Then the command evaluates four networks
on the evaluation split:

  float       the checkpoint of MODEL_DIR
  its int8    its TFLite file after calibration on images
  quantized   the checkpoint of MODEL_DIR_int8, which simulates 8 bits
  its int8    its TFLite file, without calibration

For each pair, and for float against the last one, it prints

  * AP, AP50 and AP75;
  * the mean and the greatest difference of logits and box outputs, in standard
    deviations of the first network's;
  * the share of detections above a score of 0.05 that have a match of the same class
    with IoU >= 0.5 and a score within 0.1.

--num_images limits the number of images.
"""

import retinanet_tpu.startup.cpu

import functools
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import structures
from retinanet_tpu.data import transforms
from retinanet_tpu.estimator import spec, train_step
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.serving import parity, tflite_format
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables, metric_fn
from retinanet_tpu.task.run import Run

_STEPS = flags.DEFINE_integer(
    "steps", 300, "The steps of the quantized run; 0 trains none.", lower_bound=0
)
_NUM_IMAGES = flags.DEFINE_integer(
    "num_images", None, "The number of evaluated images; all by default."
)
_NUM_CALIBRATED = 32
_METRICS = ("AP", "AP50", "AP75")
_TOLERANCE = parity.Tolerance(iou=0.5, score=0.1)

# Images, float32 [1, H, W, 3] -> predictions.
_PredictFn = Callable[[tf.Tensor], structures.Predictions]


class _Results(NamedTuple):
    """The results of a network on all images."""

    predictions: list[structures.Predictions]
    detections: list[structures.Detections]
    metrics: dict[str, Any]


def main() -> None:
    """Runs the command."""
    float_dir = cli.model_dir()
    int8_dir = f"{float_dir}_int8"
    if _STEPS.value:
        _train(float_dir, int8_dir)
    flags.FLAGS.gin_param = []  # They are those of the quantized run, which saved them.
    before, after = _evaluate(float_dir), _evaluate(int8_dir)
    names = ("float", "its int8", "quantized", "its int8")
    for name, results in zip(names, (*before, *after), strict=True):
        values = " ".join(f"{k} {results.metrics[k]:.4f}" for k in _METRICS)
        print(f"{name:<10} {values}")
    for name, pair in {
        "float | its int8": before,
        "quantized | its int8": after,
        "float | int8 of the quantized run": (before[0], after[1]),
    }.items():
        print(f"{name}: {_drift(*pair)}")


def _train(float_dir: str, int8_dir: str) -> None:
    """Trains the quantized run in a process of its own."""
    settings = [
        f"WARM_START = '{float_dir}'",
        "BACKBONE_CHECKPOINT = None",
        f"MAX_STEPS = {_STEPS.value}",
        "EVAL_EVERY = None",
        f"RunConfig.save_checkpoints_steps = {_STEPS.value}",
        *cli.GIN_PARAM.value,
    ]
    subprocess.run(
        [
            *(sys.executable, "-m", "retinanet_tpu.train", f"--model_dir={int8_dir}"),
            f"--gin_file={float_dir}/{cli.CONFIG_FILE}",
            "--gin_file=model/int8.gin",
            *(f"--gin_param={setting}" for setting in settings),
        ],
        check=True,
    )


def _evaluate(model_dir: str) -> tuple[_Results, _Results]:
    """Returns the results of a checkpoint and of its int8 export."""
    flags.FLAGS.model_dir = model_dir
    cli.parse_model_dir("COMPUTE_DTYPE = 'float32'")
    run = configurables.make_run(
        model_dir, strategy_fn=lambda: strategy.make_strategy(single_process=True)
    )
    network = run.make_network()
    path = checkpoints.latest(model_dir)
    train_step.load(network, path)
    logging.info("Evaluating %s and its int8", path)
    predict = functools.partial(network, is_training=False)
    return (
        _run(run, tf.function(predict, autograph=False)),
        _run(run, _int8(run, predict)),
    )


def _int8(run: Run, predict_fn: _PredictFn) -> _PredictFn:
    """Returns the function of the TFLite file of a network."""
    size = run.recipe.image_size
    content = tflite_format.convert(
        predict_fn,
        lambda predictions: {
            f"output{i:02}": x for i, x in enumerate(tf.nest.flatten(predictions))
        },
        tf.TensorSpec([1, *size, 3], tf.float32, name="inputs"),
        kind="int8",
        calibration_inputs=[
            transforms.letterbox(image, size)[0].numpy()
            for image in run.data.read_images(_NUM_CALIBRATED)
        ],
    )
    interpreter = tflite_format.make_interpreter(content)
    signature = interpreter.get_signature_runner()
    num_levels = len(signature.get_output_details()) // 2

    def predict(images: tf.Tensor) -> structures.Predictions:
        outputs = signature(inputs=images.numpy())
        flat = [tf.constant(outputs[name]) for name in sorted(outputs)]
        return structures.Predictions(
            class_logits=tuple(flat[:num_levels]), box_outputs=tuple(flat[num_levels:])
        )

    return predict


def _run(run: Run, predict_fn: _PredictFn) -> _Results:
    """Returns the results of a network on the evaluation split."""
    predictions: list[structures.Predictions] = []
    detections: list[structures.Detections] = []
    detect = tf.function(run.recipe.detect, autograph=False)

    def batches() -> Iterator[tuple[structures.Detections, np.ndarray]]:
        for features in _images(run):
            predicted = predict_fn(tf.cast(features.images, tf.float32))
            detected = detect(predicted, features.scales, features.image_sizes)
            detected = structures.Detections(*(x.numpy() for x in detected))
            predictions.append(tf.nest.map_structure(lambda x: x.numpy(), predicted))
            detections.append(detected)
            yield detected, features.image_ids.numpy()

    metrics = metric_fn.make_metric_fn(
        run.data.annotation_file, categories=run.recipe.categories
    )
    return _Results(predictions, detections, metrics(batches()))


def _images(run: Run) -> Iterator[structures.Features]:
    """Yields the images of the evaluation split one by one."""
    context = spec.TPUContext(num_replicas=1, num_hosts=1, current_host=0)
    params = run.params | {"batch_size": 1, "context": context}
    for features, _ in itertools.islice(
        run.eval_spec.input_fn(params), _NUM_IMAGES.value
    ):
        yield features


def _drift(expected: _Results, actual: _Results) -> str:
    """Returns the differences of two networks, in words."""
    parts = []
    for name in structures.Predictions._fields:
        means, greatest, spreads = [], [], []
        for one, other in zip(expected.predictions, actual.predictions, strict=True):
            for x, y in zip(getattr(one, name), getattr(other, name), strict=True):
                means.append((np.abs(x - y).mean(), x.size))
                greatest.append(np.abs(x - y).max())
                spreads.append((x.var(), x.size))
        values, weights = zip(*means, strict=True)
        mean = np.average(values, weights=weights)
        values, weights = zip(*spreads, strict=True)
        spread = np.sqrt(np.average(values, weights=weights))
        mean, most = mean / spread, max(greatest) / spread
        parts.append(f"{name} differ by {mean:.3f} (greatest {most:.2f})")
    report = parity.compare(actual.detections, expected.detections, _TOLERANCE)
    share = report.num_matched / max(report.num_compared, 1)
    return f"{', '.join(parts)}; {share:.1%} of detections agree: {report}"


if __name__ == "__main__":
    guard.run(main)
