"""The first values of kernels."""

import math
from collections.abc import Callable, Sequence

import numpy as np

# From (generator, shape) to the first values of a kernel, float32.
InitFn = Callable[[np.random.Generator, Sequence[int]], np.ndarray]
# The standard deviation of a unit normal distribution that is truncated at +-2.
_TRUNCATED_STDDEV = 0.87962566


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
