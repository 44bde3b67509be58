"""The layers of the network. Names, initializes and freezes their variables.

Every variable has a readable path, such as `backbone/stage3/block2/conv1/kernel`.
Freezing, weight decay and warm start select variables by path, and a kernel's random
numbers depend on it. Networks are built eagerly, because only graphs number their name
scopes. So a path does not depend on networks that were built before.
"""

import contextlib
import difflib
import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, replicas

# From (generator, shape) to the first values of a kernel, float32.
InitFn = Callable[[np.random.Generator, Sequence[int]], np.ndarray]
# From RGB pixels in 0..255 to the input of the backbone, float32.
NormalizeFn = Callable[[tf.Tensor], tf.Tensor]
# Returns E[x] and E[x^2] over the batch of this replica, float32 [C] each.
MomentsFn = Callable[[], tuple[tf.Tensor, tf.Tensor]]
# The standard deviation of a unit normal distribution that is truncated at +-2.
_TRUNCATED_STDDEV = 0.87962566


def num_parameters(variables: Iterable[tf.Variable]) -> int:
    """Returns the total number of elements of variables."""
    return sum(math.prod(variable.shape) for variable in variables)


@contextlib.contextmanager
def frozen(patterns: Sequence[str]) -> Iterator[None]:
    """Makes variables untrainable that are built in the context and match a pattern.

    A gradient tape does not watch them, so the layers before the first trainable
    variable have no backward pass. A frozen `BatchNorm` keeps its moving statistics.

    Args:
      patterns: The patterns of paths, see `matching`.
    Raises:
      UserError: patterns is a string, or a pattern matches no variable.
    """
    if isinstance(patterns, str):
        raise errors.UserError(
            f"frozen is a list of patterns, got the string {patterns!r}."
        )
    paths: list[str] = []

    def creator(next_creator, **kwargs):
        paths.append(_current_path(kwargs["name"]))
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
    """Returns the paths that match a pattern.

    Args:
      paths: The paths of variables.
      pattern: A shell pattern of a whole path or of its first parts, such as
        "backbone/stage2" or "heads/*norm*". `*` also matches "/". The part "batch_norm"
        matches every batch normalization at or below its position: "batch_norm",
        "backbone/batch_norm".
    """
    parts = ["*norm*" if part == "batch_norm" else part for part in pattern.split("/")]
    whole = "/".join(parts)
    shell_patterns = (whole, f"{whole}/*")
    return [
        path
        for path in paths
        if any(fnmatch.fnmatchcase(path, shell) for shell in shell_patterns)
    ]


def _suggestion(pattern: str, paths: Sequence[str]) -> str:
    """Returns paths that are similar to a pattern, in words."""
    parts = [path.split("/") for path in paths]
    groups = {"/".join(p[:depth]) for p in parts for depth in range(1, len(p) + 1)}
    close = difflib.get_close_matches(pattern, sorted(groups))
    roots = sorted({p[0] for p in parts})
    return f"close to it are {close}" if close else f"paths begin with {roots}"


def _current_path(name: str) -> str:
    """Returns the path of a variable that is built in the current name scope."""
    scope = tf.get_current_name_scope()
    return f"{scope}/{name}" if scope else name


def lecun_normal(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Returns float32 samples of a truncated normal with variance 1 / fan_in.

    Args:
      rng: The random number generator.
      shape: The shape, [..., out_channels]; fan_in is the product of the others.
    """
    x = rng.standard_normal(shape, dtype=np.float32)
    while (outside := np.abs(x) > 2).any():
        x[outside] = rng.standard_normal(np.count_nonzero(outside), dtype=np.float32)
    return x / np.float32(_TRUNCATED_STDDEV * math.sqrt(math.prod(shape[:-1])))


def glorot_uniform(rng: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Returns float32 samples of a uniform with variance 2 / (fan_in + fan_out).

    Args:
      rng: The random number generator.
      shape: The shape, [..., in_channels, out_channels].
    """
    *window, in_channels, out_channels = shape
    limit = math.sqrt(6 / (math.prod(window) * (in_channels + out_channels)))
    return (2 * rng.random(shape, dtype=np.float32) - 1) * np.float32(limit)


def normal(
    rng: np.random.Generator, shape: Sequence[int], *, stddev: float
) -> np.ndarray:
    """Returns float32 samples of a normal distribution with mean 0.

    Args:
      rng: The random number generator.
      shape: The shape.
      stddev: The standard deviation.
    """
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(stddev)


class Conv(tf.Module):
    """A convolution with output sides of ceil(input side / stride)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        name: str,
        stride: int = 1,
        initial_bias: float | None = None,
        init_fn: InitFn = lecun_normal,
        seed: int = 0,
    ):
        """Initializes the kernel with random numbers of its own stream, and the bias.

        Args:
          in_channels: The number of channels of the input.
          out_channels: The number of channels of the output.
          kernel_size: The side of the square window, odd.
          name: The last part of the layer's path.
          stride: The step of the window, px, 1 or 2.
          initial_bias: The first value of the bias. None makes a layer without bias.
          init_fn: Returns the first values of the kernel.
          seed: The seed of the random numbers, together with the path; >= 0.
        """
        super().__init__(name)
        self.stride = stride
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        with self.name_scope:
            rng = np.random.default_rng([seed, *_current_path("kernel").encode()])
            self.kernel = replicas.make_variable(
                init_fn(rng, shape), name="kernel", trainable=True
            )
            self.bias = None
            if initial_bias is not None:
                bias = np.full(out_channels, initial_bias, np.float32)
                self.bias = replicas.make_variable(bias, name="bias", trainable=True)

    @tf.Module.with_name_scope
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution of x, in the dtype of x.

        Args:
          x: float [B, H, W, in_channels].
        Returns:
          [B, ceil(H / stride), ceil(W / stride), out_channels].
        """
        x = self.without_bias(x)
        return x if self.bias is None else x + tf.cast(self.bias, x.dtype)

    @tf.Module.with_name_scope
    def without_bias(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution of x without the bias, for `BatchNorm` to add."""
        # With a stride, SAME would pad an image of even sides only below and right.
        pad = [self.kernel.shape[0] // 2] * 2
        padding = "SAME" if self.stride == 1 else [[0, 0], pad, pad, [0, 0]]
        return tf.nn.conv2d(x, tf.cast(self.kernel, x.dtype), self.stride, padding)


class BatchNorm(tf.Module):
    """Batch normalization over the batch of all replicas.

    The moving variance averages the biased variance, which also normalizes, so that it
    does not depend on how a batch is split. A frozen layer, which has an untrainable
    gamma, always normalizes by its moving statistics and does not update them.

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
        """Initializes gamma, beta and the moving statistics.

        Args:
          num_channels: The number of channels of the input.
          name: The last part of the layer's path.
          momentum: The decay of the moving statistics.
          epsilon: The number added to the variance.
          is_synchronized: Whether the moments are those of all replicas. If not, each
            replica has its own, and a checkpoint contains the moving statistics of
            the first one.
          initial_gamma: The first value of gamma.
        """
        super().__init__(name)
        self.momentum = momentum
        self.epsilon = epsilon
        self.is_synchronized = is_synchronized

        def make(value: float, name: str, trainable: bool) -> tf.Variable:
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
        """Returns x + bias normalized, in x's dtype. Training updates the statistics.

        Args:
          x: float [..., C].
          is_training: Whether to normalize by the batch's moments.
          bias: float32 [C], the bias of the layer before. None means 0.
        """
        # XLA fuses the cast: in memory x keeps its dtype.
        x32 = tf.cast(x, tf.float32)
        scale, shift = self.affine(lambda: _moments(x32), is_training, bias)
        return tf.cast(x32 * scale + shift, x.dtype)

    def uses_batch(self, is_training: bool) -> bool:
        """Returns True for the batch's moments, False for the moving statistics."""
        return is_training and self.gamma.trainable

    def affine(
        self, moments_fn: MomentsFn, is_training: bool, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scale and shift, float32 [C]. Training updates the statistics.

        Args:
          moments_fn: Returns the moments of the layer's input without the bias.
          is_training: Whether to normalize by the batch's moments.
          bias: float32 [C], see `__call__`. The batch's mean contains it, so it cancels
            and its gradient is 0. Added to the shift, not to x, it costs nothing.
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

    def _move(self, statistic: tf.Variable, value: tf.Tensor) -> None:
        """Moves a moving statistic towards a value."""
        statistic.assign(self.momentum * statistic + (1 - self.momentum) * value)


# The parts of a network get this function as norm_fn and call it with
# (num_channels, name=) or (num_channels, name=, initial_gamma=).
NormFn = Callable[..., BatchNorm]


def _moments(x32: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns E[x] and E[x^2] over all axes but the last.

    They need one pass over x and one exchange between replicas. The two-pass variance
    needs two of each.
    """
    axes = list(range(x32.shape.rank - 1))
    return tf.reduce_mean(x32, axes), tf.reduce_mean(tf.square(x32), axes)
