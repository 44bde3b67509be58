"""A linear model to test the estimator without detection."""

import numpy as np
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.estimator import run_config, spec, tpu_estimator, train_step
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.xla import lower

NUM_EXAMPLES = 64


class Linear(tf.Module):
    """The network: three inputs, one output."""

    def __init__(self):
        with tf.name_scope("linear"):
            self.matrix = replicas.make_variable(
                tf.zeros([3, 1]), name="matrix", trainable=True
            )
            self.bias = replicas.make_variable(
                tf.zeros([1]), name="bias", trainable=True
            )

    def __call__(self, x):
        return x @ self.matrix + self.bias


class Descent:
    """An optimizer: gradient descent that counts its steps in a slot."""

    def __init__(self, network, rate=0.1):
        self._weights = list(network.trainable_variables)
        self._rate = rate
        self._count = replicas.make_variable(0.0, name="count")
        self.variables = {"slots/count": self._count}

    def scale(self, loss):
        return loss

    def apply(self, gradients, step):
        for gradient, weight in zip(gradients, self._weights, strict=True):
            weight.assign_sub(self._rate * gradient)
        self._count.assign_add(1.0)
        norm = tf.linalg.global_norm(gradients)
        return {"gradient-norm": norm, "learning-rate": tf.cast(step, tf.float32)}


def examples():
    """Returns float32 inputs [NUM_EXAMPLES, 3] and outputs [NUM_EXAMPLES, 1]."""
    x = np.random.default_rng(0).normal(size=[NUM_EXAMPLES, 3]).astype(np.float32)
    return x, (x @ [[1.0], [2.0], [3.0]] + 0.5).astype(np.float32)


def train_input_fn(params):
    """Returns endless batches, starting at the step of the context."""
    batch_size, context = params["batch_size"], params["context"]
    dataset = tf.data.Dataset.from_tensor_slices(examples()).repeat()
    used = context.first_step * batch_size * context.num_of_replicas_per_host
    return dataset.skip(used).batch(batch_size, drop_remainder=True)


def eval_input_fn(params):
    dataset = tf.data.Dataset.from_tensor_slices(examples())
    return dataset.batch(params["batch_size"], drop_remainder=True)


def model_fn(features, labels, mode, network):
    outputs = network(features)
    if mode == spec.ModeKeys.PREDICT:
        return spec.TPUEstimatorSpec(mode, predictions={"outputs": outputs})
    loss = tf.reduce_mean(tf.square(outputs - labels))
    return spec.TPUEstimatorSpec(
        mode,
        loss=loss,
        scalars={"total-loss": loss},
        eval_metrics=(mean_output, {"outputs": outputs}),
    )


def mean_output(batches):
    outputs = np.concatenate([batch["outputs"] for batch in batches])
    return {"mean_output": float(outputs.mean()), "num_outputs": len(outputs)}


def make_estimator(
    model_dir,
    *,
    num_replicas=1,
    engine="tf.distribute",
    fn=model_fn,
    update_fn=Descent,
    **settings,
):
    """Returns an estimator of the linear model; `settings` override RunConfig's."""
    settings = {"save_checkpoints_steps": 10, "iterations_per_loop": 4} | settings
    loop = run_config.TPUConfig(
        iterations_per_loop=settings.pop("iterations_per_loop"),
        jit_compile=settings.pop("jit_compile", False),
    )
    warm_start_from = settings.pop("warm_start_from", None)
    return tpu_estimator.TPUEstimator(
        fn,
        str(model_dir),
        network_fn=lambda params: Linear(),
        update_fn=update_fn,
        config=run_config.RunConfig(tpu_config=loop, **settings),
        strategy=strategy.make_strategy(
            "cpu", engine=engine, num_devices=num_replicas, compilation_cache=""
        ),
        train_batch_size=8,
        eval_batch_size=8,
        predict_batch_size=8,
        warm_start_from=warm_start_from,
    )


def lowered(num_replicas):
    """Returns the program of the training step for a number of replicas."""
    ahead_of_time = lower.AheadOfTimeStrategy(num_replicas)
    with ahead_of_time.scope():
        network = Linear()
        state = train_step.TrainState(network, Descent(network))
    step_fn = train_step.make_step_fn(state, model_fn, dict)
    batch = (tf.TensorSpec([4, 3]), tf.TensorSpec([4, 1]))
    return lower.lower(step_fn, [batch, tf.TensorSpec([], tf.int64)], ahead_of_time)
