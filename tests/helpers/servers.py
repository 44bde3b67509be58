"""Makes a serving module with random weights that has many detections."""

import dataclasses

import numpy as np
import tensorflow as tf

import toy_data
from retinanet_tpu.data import category_map
from retinanet_tpu.serving import server

CATEGORIES = category_map.Categories(
    3,
    (
        category_map.Category(0, 7, "left"),
        category_map.Category(2, 40, "right"),
    ),
)


def make(*bindings: str, seed: int = 0) -> server.ServingModule:
    """Returns a tiny module whose scores spread over (0, 1); index 1 is unused."""
    settings = (*toy_data.TWO_LEVELS, "NUM_CLASSES = 3", *bindings)
    run = toy_data.make_run(None, "no_data", *settings)
    recipe = dataclasses.replace(run.recipe, categories=CATEGORIES)
    network = recipe.make_network(run.network_fn)
    rng = np.random.default_rng(seed)
    for variable in network.heads.variables:
        if variable.name.startswith("heads/class/logits/bias"):
            variable.assign(tf.fill(variable.shape, -2.0))
        elif "/logits/kernel" in variable.name:
            variable.assign(rng.normal(0, 0.3, variable.shape))
        elif f"/{recipe.anchors.box_coder.output_name}/kernel" in variable.name:
            variable.assign(rng.normal(0, 0.03, variable.shape))
    return server.ServingModule(network, recipe)


def images(num: int, size: tuple[int, int] = (60, 90), seed: int = 0) -> np.ndarray:
    """Returns uint8 [num, *size, 3] of colored rectangles on noise."""
    rng = np.random.default_rng(seed)
    result = rng.integers(0, 60, (num, *size, 3), dtype=np.uint8)
    for image in result:
        for _ in range(6):
            y, x = (int(rng.integers(0, side - 12)) for side in size)
            height, width = rng.integers(8, 40, 2)
            image[y : y + height, x : x + width] = rng.integers(60, 256, 3)
    return result
