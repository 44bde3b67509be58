"""Shifts the class logits of a random network to a realistic number of objects.

A network with random weights gives every class the same low probability, so
non-maximum suppression would have nothing to do. This module uses NumPy only, because
two environments share it.
"""

import numpy as np

THRESHOLD = 0.05  # Our default and Model Garden's: lower scores are no candidates.


def shift(
    kernel: np.ndarray, logits: np.ndarray, is_class: np.ndarray, num_likely: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel and bias of the convolution that makes the class logits.

    The logits of each class and anchor shape get mean 0 and standard deviation 1 over
    the images. A common shift then gives the requested number of scores.

    Args:
      kernel: The random kernel, float [..., anchor shapes x K].
      logits: The logits of the kernel without a bias, float
        [images, cells, anchor shapes x K].
      is_class: A bool [K] array, False for indexes whose scores are ignored.
      num_likely: The mean number of pairs of anchor and class above THRESHOLD, per
        image.
    """
    scale = 1 / logits.std((0, 1))
    bias = -logits.mean((0, 1)) * scale
    is_counted = np.tile(is_class, len(scale) // len(is_class))
    values = (logits * scale + bias)[..., is_counted].ravel()
    rank = len(values) - num_likely * len(logits)
    limit = np.partition(values, rank)[rank]
    bias += np.log(THRESHOLD / (1 - THRESHOLD)) - limit
    return (kernel * scale).astype(np.float32), bias.astype(np.float32)
