"""The layers of the network, and how their variables are named, drawn and frozen.

Every variable has a path of readable parts (`backbone/stage3/block2/conv1/kernel`).
Freezing, weight decay and warm start select by it, and it seeds the variable's draw.
Networks are built eagerly: there a name scope is never numbered, so a path does not
depend on what was built before.
"""

import contextlib
import difflib
import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, replicas

# What is left of a unit normal's standard deviation after cutting it at +-2.
_TRUNCATED_STDDEV = 0.87962566


def num_parameters(variables: Iterable[tf.Variable]) -> int:
    """Returns how many numbers the variables hold together."""
    return sum(math.prod(variable.shape) for variable in variables)


@contextlib.contextmanager
def frozen(patterns: Sequence[str]) -> Iterator[None]:
    """Makes the variables built inside the context untrainable where a pattern matches.

    A gradient tape does not watch them, so what lies before the first trainable
    variable has no backward pass; a frozen `BatchNorm` keeps its moving statistics.

    Args:
      patterns: see `matching`.
    Raises:
      UserError: patterns is a string, or one of them matches no variable.
    """
    if isinstance(patterns, str):
        raise errors.UserError(
            f"frozen is a list of patterns, got the string {patterns!r}."
        )
    paths = []

    def creator(next_creator, **kwargs):
        paths.append(_path_here(kwargs["name"]))
        if any(matching(paths[-1:], pattern) for pattern in patterns):
            kwargs["trainable"] = False
        return next_creator(**kwargs)

    with tf.variable_creator_scope(creator):
        yield
    for pattern in patterns:
        if not matching(paths, pattern):
            hint = _suggestion(pattern, paths)
            raise errors.UserError(f"frozen: {pattern!r} matches no variable; {hint}.")


def matching(paths: Iterable[str], pattern: str) -> list[str]:
    """Returns the paths that a pattern selects.

    Args:
      paths: of variables.
      pattern: a shell pattern (`*` crosses "/") of a whole path or of its leading
        parts: "backbone/stage2", "heads/*norm*". "batch_norm" stands for every batch
        norm at or below its place: "batch_norm", "backbone/batch_norm".
    """
    parts = ["*norm*" if part == "batch_norm" else part for part in pattern.split("/")]
    whole = "/".join(parts)
    wanted = (whole, f"{whole}/*")
    return [
        path_ for path_ in paths if any(fnmatch.fnmatchcase(path_, w) for w in wanted)
    ]


def _suggestion(pattern, paths):
    parts = [path_.split("/") for path_ in paths]
    groups = {"/".join(p[:depth]) for p in parts for depth in range(1, len(p) + 1)}
    close = difflib.get_close_matches(pattern, sorted(groups))
    roots = sorted({p[0] for p in parts})
    return f"close to it are {close}" if close else f"paths begin with {roots}"


def _path_here(name):
    scope = tf.get_current_name_scope()
    return f"{scope}/{name}" if scope else name


def lecun_normal(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Draws float32 of variance 1 / fan_in from a normal cut at two deviations."""
    x = rng.standard_normal(shape, dtype=np.float32)
    while (outside := np.abs(x) > 2).any():
        x[outside] = rng.standard_normal(np.count_nonzero(outside), dtype=np.float32)
    return x / np.float32(_TRUNCATED_STDDEV * math.sqrt(math.prod(shape[:-1])))


def glorot_uniform(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Draws float32 of variance 2 / (fan_in + fan_out), uniformly."""
    *window, in_channels, out_channels = shape
    limit = math.sqrt(6 / (math.prod(window) * (in_channels + out_channels)))
    return (2 * rng.random(shape, dtype=np.float32) - 1) * np.float32(limit)


def normal(
    rng: np.random.Generator, shape: Sequence[int], *, stddev: float
) -> np.ndarray:
    """Draws float32 from a normal of mean 0."""
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(stddev)


class Conv(tf.Module):
    """A convolution whose output is the input divided by the stride, rounded up."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        name: str,
        stride: int = 1,
        initial_bias: float | None = None,
        init_fn: Callable = lecun_normal,
        seed: int = 0,
    ):
        """Draws the kernel from a stream of its own.

        Args:
          in_channels: channels of the input.
          out_channels: channels of the output.
          kernel_size: side of the square window, odd.
          name: last part of the layer's path.
          stride: step of the window, px, 1 or 2.
          initial_bias: first value of the bias; None makes a layer without one.
          init_fn: from (generator, shape) to the kernel's first values.
          seed: with the path, seeds the generator; 0 or above.
        """
        super().__init__(name)
        self.stride = stride
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        with self.name_scope:
            rng = np.random.default_rng([seed, *_path_here("kernel").encode()])
            self.kernel = replicas.make_variable(
                init_fn(rng, shape), name="kernel", trainable=True
            )
            self.bias = None
            if initial_bias is not None:
                bias = np.full(out_channels, initial_bias, np.float32)
                self.bias = replicas.make_variable(bias, name="bias", trainable=True)

    @tf.Module.with_name_scope
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolved x, in its dtype.

        Args:
          x: float [B, H, W, in_channels].
        Returns:
          [B, ceil(H / stride), ceil(W / stride), out_channels].
        """
        x = self.without_bias(x)
        return x if self.bias is None else x + tf.cast(self.bias, x.dtype)

    @tf.Module.with_name_scope
    def without_bias(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolved x, the bias not yet added."""
        # SAME would pad an even image below and right only when it strides.
        pad = [self.kernel.shape[0] // 2] * 2
        padding = "SAME" if self.stride == 1 else [[0, 0], pad, pad, [0, 0]]
        return tf.nn.conv2d(x, tf.cast(self.kernel, x.dtype), self.stride, padding)


class BatchNorm(tf.Module):
    """Batch normalization over the whole batch of all replicas.

    The moving variance follows the biased variance, the one that normalizes, so that
    it does not depend on how a batch is split. Frozen, that is with an untrainable
    gamma, it always normalizes by its moving statistics and leaves them alone.

    Source: arXiv:1502.03167; moments of all replicas as in MegDet, arXiv:1711.07240.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        name: str,
        momentum: float = 0.997,
        epsilon: float = 1e-4,
        is_synchronized: bool = True,
        initial_gamma: float = 1.0,
    ):
        """Makes gamma, beta and the moving statistics.

        Args:
          num_channels: channels of the input.
          name: last part of the layer's path.
          momentum: what the moving statistics keep of themselves at a step.
          epsilon: added to the variance.
          is_synchronized: whether moments are those of all replicas, or each its own
            (then the first replica's moving statistics are the ones saved).
          initial_gamma: first value of gamma.
        """
        super().__init__(name)
        self.momentum = momentum
        self.epsilon = epsilon
        self.is_synchronized = is_synchronized

        def make(value, name, trainable):
            values = np.full(num_channels, value, np.float32)
            return replicas.make_variable(values, name=name, trainable=trainable)

        with self.name_scope:
            self.gamma = make(initial_gamma, "gamma", True)
            self.beta = make(0, "beta", True)
            self.moving_mean = make(0, "moving_mean", False)
            self.moving_variance = make(1, "moving_variance", False)

    @tf.Module.with_name_scope
    def __call__(
        self, x: tf.Tensor, *, is_training: bool, bias: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns x + bias normalized, in x's dtype; in training, moves the statistics.

        Args:
          x: float [..., C].
          is_training: whether to normalize by the batch's moments.
          bias: float32 [C] of the layer before, or None for 0.
        """
        # The cast lives inside XLA's fusions: in memory x keeps its dtype.
        x32 = tf.cast(x, tf.float32)
        scale, shift = self.affine(lambda: _moments(x32), is_training, bias)
        return tf.cast(x32 * scale + shift, x.dtype)

    def uses_batch(self, is_training: bool) -> bool:
        """Returns whether the moments are the batch's, not the moving statistics."""
        return is_training and self.gamma.trainable

    def affine(
        self, moments_fn: Callable, is_training: bool, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scale and shift, float32 [C]; in training, moves the statistics.

        Args:
          moments_fn: returns E[x] and E[x^2] over this replica's batch, float32 [C].
          is_training: whether to normalize by the batch's moments.
          bias: see `__call__`. A batch's mean takes it out again: a bias that joins
            the shift and not the map costs nothing there, and its gradient is 0.
        """
        bias = 0.0 if bias is None else bias
        if self.uses_batch(is_training):
            moments = tf.stack(moments_fn())
            if self.is_synchronized:
                moments = replicas.cross_replica_mean(moments)
            mean, mean_square = tf.unstack(moments)
            variance = tf.maximum(mean_square - tf.square(mean), 0)
            mean += bias
            self._move(self.moving_mean, mean)
            self._move(self.moving_variance, variance)
        else:
            mean, variance = self.moving_mean, self.moving_variance
        scale = self.gamma * tf.math.rsqrt(variance + self.epsilon)
        return scale, self.beta + (bias - mean) * scale

    def _move(self, statistic, value):
        statistic.assign(self.momentum * statistic + (1 - self.momentum) * value)


def _moments(x32):
    """Returns E[x] and E[x^2] over all axes but the last.

    They take one pass over x and one exchange; the two-pass variance takes two of each.
    """
    axes = list(range(x32.shape.rank - 1))
    return tf.reduce_mean(x32, axes), tf.reduce_mean(tf.square(x32), axes)
