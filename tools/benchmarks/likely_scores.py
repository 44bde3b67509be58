"""Gives a network with random weights as many probable objects as a trained one has.

As drawn, a network gives every class the same low probability: non-maximum suppression
would have nothing to do. NumPy only: two environments share it.
"""

import numpy as np

THRESHOLD = 0.05  # Ours and Model Garden's: what is as low is no candidate.


def spread(
    kernel: np.ndarray, logits: np.ndarray, is_class: np.ndarray, num_likely: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias of the convolution that makes the class logits.

    The logits of every class and anchor shape get mean 0 and deviation 1 over the
    images; then all are shifted alike.

    Args:
      kernel: float [..., anchor shapes x K], as drawn.
      logits: float [images, places, anchor shapes x K], made by it without a bias.
      is_class: bool [K], false where no score counts.
      num_likely: pairs of anchor and class above THRESHOLD, an image on average.
    """
    scale = 1 / logits.std((0, 1))
    shift = -logits.mean((0, 1)) * scale
    counts = np.tile(is_class, len(scale) // len(is_class))
    values = (logits * scale + shift)[..., counts].ravel()
    rank = len(values) - num_likely * len(logits)
    limit = np.partition(values, rank)[rank]
    shift += np.log(THRESHOLD / (1 - THRESHOLD)) - limit
    return (kernel * scale).astype(np.float32), shift.astype(np.float32)
