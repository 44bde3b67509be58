"""Trains a small network to read digits, with `retinanet_tpu.estimator` alone.

  python tools/examples/train_digits.py --model_dir=/tmp/digits [--max_steps=300]

This is a model to copy from, for users of TPUEstimator
(docs/migrating_from_tpuestimator.md). It consists of an estimator and its functions.
It draws its digits itself, with Pillow, and trains in seconds on a CPU. A second start
with the same --model_dir resumes from the latest checkpoint.
"""

import retinanet_tpu.startup.tpu

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image, ImageDraw, ImageFont

from retinanet_tpu import replicas
from retinanet_tpu.estimator import (
    exporters,
    run_config,
    spec,
    tpu_estimator,
    train_and_evaluate,
)
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.startup import guard

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.", required=True)
_MAX_STEPS = flags.DEFINE_integer(
    "max_steps", 300, "Total number of training steps, at least 100."
)

SIZE = 20  # Height and width of an image, px.
NUM_TRAIN = 4000
NUM_TEST = 512
TRAIN_BATCH = 64
EVAL_BATCH = 128  # It divides NUM_TEST, so that no test image is dropped.


@functools.cache
def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws digits of random size, position, rotation and brightness with noise.

    Args:
      count: The number of images.
      seed: The seed of the random numbers.

    Returns:
      The images, float32 [count, SIZE, SIZE, 1], about 0 to 1, and the digits, int32
      [count].
    """
    rng = np.random.default_rng(seed)
    fonts = {size: ImageFont.load_default(size) for size in range(15, 20)}
    digits = rng.integers(10, size=count, dtype=np.int32)
    images = []
    for digit in digits:
        image = Image.new("L", (SIZE, SIZE), int(rng.integers(80)))
        x, y = SIZE / 2 + rng.uniform(-2, 2, size=2)
        font = fonts[int(rng.integers(15, 20))]
        brightness = int(rng.integers(150, 255))
        ImageDraw.Draw(image).text((x, y), str(digit), brightness, font, anchor="mm")
        rotated = image.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
        images.append(np.asarray(rotated) / 255)
    noise = rng.normal(scale=0.05, size=[count, SIZE, SIZE])
    return (np.stack(images) + noise)[..., None].astype(np.float32), digits


class Network(tf.Module):
    """Two convolutions and a dense layer."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.conv1 = _make_kernel(rng, "conv1/kernel", [5, 5, 1, 16])
        self.conv2 = _make_kernel(rng, "conv2/kernel", [3, 3, 16, 32])
        self.dense = _make_kernel(rng, "dense/kernel", [(SIZE // 4) ** 2 * 32, 10])

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Returns the logits.

        Args:
          images: The images, float32 [B, SIZE, SIZE, 1].

        Returns:
          float32 [B, 10].
        """
        mean = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
        x = 3 * (images - mean)  # About unit variance, independent of the brightness.
        x = tf.nn.relu(tf.nn.conv2d(x, self.conv1, 2, "SAME"))
        x = tf.nn.relu(tf.nn.conv2d(x, self.conv2, 2, "SAME"))
        return tf.reshape(x, [-1, self.dense.shape[0]]) @ self.dense


class Momentum:
    """Gradient descent with momentum. Checkpoints contain `variables`."""

    def __init__(self, network: tf.Module):
        """Initializes the optimizer.

        Args:
          network: The network whose trainable weights are updated.
        """
        self._weights = list(network.trainable_variables)
        self.variables: dict[str, tf.Variable] = {}
        for weight in self._weights:
            slot = replicas.make_variable(tf.zeros(weight.shape), name="slot")
            self.variables[f"slots/{replicas.variable_path(weight)}"] = slot

    def scale(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns the loss to differentiate; an optimizer for float16 would scale it.

        Args:
          loss: The loss, a float32 scalar.
        """
        return loss

    def apply(
        self, gradients: Sequence[tf.Tensor], step: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Updates the weights and returns the scalars to log.

        Args:
          gradients: The mean gradients over all replicas.
          step: The number of steps so far, an int64 scalar.
        """
        # Linear warm-up over 50 steps.
        rate = 0.05 * tf.minimum(tf.cast(step + 1, tf.float32) / 50, 1.0)
        slots = self.variables.values()
        for weight, slot, g in zip(self._weights, slots, gradients, strict=True):
            slot.assign(0.9 * slot + g)
            weight.assign_sub(rate * slot)
        return {"learning-rate": rate}


def _make_kernel(
    rng: np.random.Generator, name: str, shape: Sequence[int]
) -> tf.Variable:
    scale = (2 / np.prod(shape[:-1])) ** 0.5  # He et al., arXiv:1502.01852
    value = rng.normal(scale=scale, size=shape).astype(np.float32)
    return replicas.make_variable(value, name=name, trainable=True)


def model_fn(
    features: tf.Tensor, labels: tf.Tensor | None, mode: str, network: Network
) -> spec.TPUEstimatorSpec:
    """Returns the predictions or the loss of one replica's batch.

    Args:
      features: The images, float32 [B, SIZE, SIZE, 1].
      labels: The digits, int32 [B]; None in the mode PREDICT.
      mode: The mode, one of spec.ModeKeys.
      network: The network.
    """
    logits = network(features)
    digits = tf.argmax(logits, axis=1, output_type=tf.int32)
    if mode == spec.ModeKeys.PREDICT:
        predictions = {"digits": digits, "probabilities": tf.nn.softmax(logits)}
        return spec.TPUEstimatorSpec(mode, predictions=predictions)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    loss = tf.reduce_mean(losses)
    accuracy = tf.reduce_mean(tf.cast(digits == labels, tf.float32))
    return spec.TPUEstimatorSpec(
        mode,
        loss=loss,
        scalars={"total-loss": loss, "accuracy": accuracy},
        eval_metrics=(metric_fn, {"predicted": digits, "labels": labels}),
    )


def metric_fn(batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Returns the accuracy over all digits and of each digit.

    Args:
      batches: The tensors of `eval_metrics` for each batch: "predicted" and "labels",
        int32 [B].
    """
    batches = list(batches)
    predicted = np.concatenate([batch["predicted"] for batch in batches])
    labels = np.concatenate([batch["labels"] for batch in batches])
    is_correct = predicted == labels
    per_digit = {str(d): float(is_correct[labels == d].mean()) for d in range(10)}
    return {"accuracy": float(is_correct.mean()), "per_digit": per_digit}


def train_input_fn(params: Mapping[str, Any]) -> tf.data.Dataset:
    """Returns endless training batches that continue an earlier run.

    Args:
      params: The parameters of the estimator, with "batch_size" (per replica) and
        "context".
    """
    batch_size = params["batch_size"]
    context = params["context"]
    dataset = tf.data.Dataset.from_tensor_slices(draw(NUM_TRAIN, seed=0))
    dataset = dataset.shard(context.num_hosts, context.current_host)
    dataset = dataset.shuffle(NUM_TRAIN, seed=0).repeat()
    used = context.first_step * batch_size * context.num_of_replicas_per_host
    return dataset.skip(used).batch(batch_size, drop_remainder=True)


def eval_input_fn(params: Mapping[str, Any]) -> tf.data.Dataset:
    """Returns batches that contain each test image once.

    Args:
      params: The parameters of the estimator, with "batch_size" (per replica) and
        "context".
    """
    context = params["context"]
    dataset = tf.data.Dataset.from_tensor_slices(draw(NUM_TEST, seed=1))
    dataset = dataset.shard(context.num_hosts, context.current_host)
    return dataset.batch(params["batch_size"], drop_remainder=True)


def serving_fn(network: Network, params: Mapping[str, Any]) -> spec.Serving:
    """Returns the signature of an export, from images to digits.

    Args:
      network: The network.
      params: The parameters of the estimator; not used.
    """

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 1], name="images")])
    def read(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return model_fn(images, None, spec.ModeKeys.PREDICT, network).predictions

    return spec.Serving(network, {"serving_default": read})


def make_estimator(
    model_dir: str, strategy: tf.distribute.Strategy | None = None
) -> tpu_estimator.TPUEstimator:
    """Returns the estimator.

    Args:
      model_dir: The folder of the run.
      strategy: The strategy, from `estimator.cluster.strategy.make_strategy`; None for
        the default device.
    """
    loop = run_config.TPUConfig(iterations_per_loop=20)
    return tpu_estimator.TPUEstimator(
        model_fn,
        model_dir,
        network_fn=lambda params: Network(),
        update_fn=Momentum,
        config=run_config.RunConfig(save_checkpoints_steps=100, tpu_config=loop),
        strategy=strategy,
        train_batch_size=TRAIN_BATCH,
        eval_batch_size=EVAL_BATCH,
        predict_batch_size=EVAL_BATCH,
    )


def main() -> None:
    """Trains, evaluates each checkpoint and exports the best as a SavedModel."""
    runner = make_estimator(_MODEL_DIR.value)
    best = exporters.BestExporter(serving_fn, metric="accuracy")
    train_and_evaluate.train_and_evaluate(
        runner,
        spec.TrainSpec(train_input_fn, _MAX_STEPS.value),
        spec.EvalSpec(eval_input_fn, every_steps=100, exporters=(best,)),
    )
    metrics = runner.evaluation_results(checkpoints.latest(_MODEL_DIR.value))
    print(f"Accuracy on {NUM_TEST} test images: {metrics['accuracy']:.3f}")


if __name__ == "__main__":
    guard.run(main)
