"""Trains a small network to read digits, by `retinanet_tpu.estimator` alone.

  python tools/examples/train_digits.py --model_dir=/tmp/digits [--max_steps=300]

A model to copy from, for users of TPUEstimator
(docs/migrating_from_tpuestimator.md): the functions
that an estimator takes, and the estimator. It draws its digits itself, with Pillow, and
takes seconds on a CPU. Started again with the same --model_dir it goes on from the
latest checkpoint.
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

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "Folder of the run.")
_MAX_STEPS = flags.DEFINE_integer("max_steps", 300, "Steps over all runs, from 100.")

SIZE = 20  # Side of an image, px.
NUM_TRAIN, NUM_TEST = 4000, 512
TRAIN_BATCH, EVAL_BATCH = 64, 128  # 128 divides 512: no test image is left over.


@functools.cache
def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws digits, each of its own size, place, slant and light, on noisy ground.

    Returns float32 [count, SIZE, SIZE, 1], about 0 to 1, and int32 [count].
    """
    rng = np.random.default_rng(seed)
    fonts = {size: ImageFont.load_default(size) for size in range(15, 20)}
    digits = rng.integers(10, size=count, dtype=np.int32)
    pictures = []
    for digit in digits:
        picture = Image.new("L", (SIZE, SIZE), int(rng.integers(80)))
        place = tuple(SIZE / 2 + rng.uniform(-2, 2, size=2))
        font, light = fonts[rng.integers(15, 20)], int(rng.integers(150, 255))
        ImageDraw.Draw(picture).text(place, str(digit), light, font, anchor="mm")
        turned = picture.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
        pictures.append(np.asarray(turned) / 255)
    noise = rng.normal(scale=0.05, size=[count, SIZE, SIZE])
    return (np.stack(pictures) + noise)[..., None].astype(np.float32), digits


class Network(tf.Module):
    """Two convolutions and a dense layer."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.conv1 = _make_kernel(rng, "conv1/kernel", [5, 5, 1, 16])
        self.conv2 = _make_kernel(rng, "conv2/kernel", [3, 3, 16, 32])
        self.dense = _make_kernel(rng, "dense/kernel", [(SIZE // 4) ** 2 * 32, 10])

    def __call__(self, pictures: tf.Tensor) -> tf.Tensor:
        """Returns the logits, float32 [B, 10], of [B, SIZE, SIZE, 1]."""
        mean = tf.reduce_mean(pictures, axis=[1, 2], keepdims=True)
        x = 3 * (pictures - mean)  # Of any light, about unit variance.
        x = tf.nn.relu(tf.nn.conv2d(x, self.conv1, 2, "SAME"))
        x = tf.nn.relu(tf.nn.conv2d(x, self.conv2, 2, "SAME"))
        return tf.reshape(x, [-1, self.dense.shape[0]]) @ self.dense


class Momentum:
    """Gradient descent with momentum; `variables` goes to checkpoints."""

    def __init__(self, network: tf.Module):
        self._weights, self.variables = list(network.trainable_variables), {}
        for weight in self._weights:
            slot = replicas.make_variable(tf.zeros(weight.shape), name="slot")
            self.variables[f"slots/{replicas.variable_path(weight)}"] = slot

    def scale(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns the loss to differentiate, larger for float16."""
        return loss

    def apply(self, gradients: Sequence[tf.Tensor], step: tf.Tensor) -> Mapping:
        """Updates the weights by the gradients' mean; returns scalars to log."""
        rate = 0.05 * tf.minimum(tf.cast(step + 1, tf.float32) / 50, 1.0)  # Warms up.
        slots = self.variables.values()
        for weight, slot, g in zip(self._weights, slots, gradients, strict=True):
            slot.assign(0.9 * slot + g)
            weight.assign_sub(rate * slot)
        return {"learning-rate": rate}


def _make_kernel(rng, name, shape):
    scale = (2 / np.prod(shape[:-1])) ** 0.5  # He et al., arXiv:1502.01852
    value = rng.normal(scale=scale, size=shape).astype(np.float32)
    return replicas.make_variable(value, name=name, trainable=True)


def model_fn(
    features: tf.Tensor, labels: tf.Tensor | None, mode: str, network: Network
) -> spec.TPUEstimatorSpec:
    """Returns what a mode asks for, of one replica's batch."""
    logits = network(features)
    found = tf.argmax(logits, axis=1, output_type=tf.int32)
    if mode == spec.ModeKeys.PREDICT:
        predictions = {"digits": found, "probabilities": tf.nn.softmax(logits)}
        return spec.TPUEstimatorSpec(mode, predictions=predictions)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    loss = tf.reduce_mean(losses)
    accuracy = tf.reduce_mean(tf.cast(found == labels, tf.float32))
    return spec.TPUEstimatorSpec(
        mode,
        loss=loss,
        scalars={"total-loss": loss, "accuracy": accuracy},
        eval_metrics=(metric_fn, {"found": found, "digits": labels}),
    )


def metric_fn(batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Returns the share of digits that were read, of all and of each kind."""
    batches = list(batches)
    found = np.concatenate([batch["found"] for batch in batches])
    digits = np.concatenate([batch["digits"] for batch in batches])
    is_right = found == digits
    per_digit = {str(d): float(is_right[digits == d].mean()) for d in range(10)}
    return {"accuracy": float(is_right.mean()), "per_digit": per_digit}


def train_input_fn(params: Mapping[str, Any]) -> tf.data.Dataset:
    """Gives batches without end, from where an earlier run stopped."""
    batch_size, context = params["batch_size"], params["context"]
    dataset = tf.data.Dataset.from_tensor_slices(draw(NUM_TRAIN, seed=0))
    dataset = dataset.shard(context.num_hosts, context.current_host)
    dataset = dataset.shuffle(NUM_TRAIN, seed=0).repeat()
    used = context.first_step * batch_size * context.num_of_replicas_per_host
    return dataset.skip(used).batch(batch_size, drop_remainder=True)


def eval_input_fn(params: Mapping[str, Any]) -> tf.data.Dataset:
    """Gives each test image once."""
    context = params["context"]
    dataset = tf.data.Dataset.from_tensor_slices(draw(NUM_TEST, seed=1))
    dataset = dataset.shard(context.num_hosts, context.current_host)
    return dataset.batch(params["batch_size"], drop_remainder=True)


def serving_fn(network: Network, params: Mapping[str, Any]) -> spec.Serving:
    """Returns what an export answers: images in, digits out."""

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 1], name="images")])
    def read(images):
        return model_fn(images, None, spec.ModeKeys.PREDICT, network).predictions

    return spec.Serving(network, {"serving_default": read})


def make_estimator(
    model_dir: str, strategy: tf.distribute.Strategy | None = None
) -> tpu_estimator.TPUEstimator:
    """Joins the parts; `estimator.strategy.make_strategy` makes a strategy."""
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
    """Trains, scores each checkpoint, keeps the best as a SavedModel."""
    runner = make_estimator(_MODEL_DIR.value)
    best = exporters.BestExporter(serving_fn, metric="accuracy")
    train_and_evaluate.train_and_evaluate(
        runner,
        spec.TrainSpec(train_input_fn, _MAX_STEPS.value),
        spec.EvalSpec(eval_input_fn, every_steps=100, exporters=(best,)),
    )
    results = runner.evaluation_results(checkpoints.latest(_MODEL_DIR.value))
    print(f"Accuracy on {NUM_TEST} test images: {results['accuracy']:.3f}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["model_dir"])
    guard.run(main)
