"""Counts the multiply-adds of a network."""

import math

import tensorflow as tf

from retinanet_tpu.model import retinanet


def multiply_adds(network: retinanet.RetinaNet, image_size: tuple[int, int]) -> int:
    """Returns the number of multiply-adds of the prediction for one image.

    It counts the products of convolutions, depthwise convolutions and matrix
    multiplications. Normalizations, activations, pooling and additions are not counted.
    A convolution that is computed as another one, such as the stem of `ResNet`, counts
    with the zeros of its larger kernel.

    Args:
      network: The network.
      image_size: The height and width of the image, px.
    """
    # A trace computes nothing, so weights and size do not matter for its time.
    function = tf.function(
        lambda images: network(images, is_training=False), autograph=False
    )
    spec = tf.TensorSpec([1, *image_size, 3], tf.uint8)
    graph = function.get_concrete_function(spec).graph
    return sum(map(_products, graph.get_operations()))


def _products(operation: tf.Operation) -> int:
    """Returns the number of products of an operation."""
    if operation.type == "Conv2D":
        *window, in_channels, _ = operation.inputs[1].shape
        per_output = math.prod(window) * in_channels
    elif operation.type == "DepthwiseConv2dNative":
        per_output = math.prod(operation.inputs[1].shape[:2])
    elif operation.type in ("MatMul", "BatchMatMulV2"):
        name = "transpose_a" if operation.type == "MatMul" else "adj_x"
        per_output = operation.inputs[0].shape[-2 if operation.get_attr(name) else -1]
    else:
        return 0
    return math.prod(operation.outputs[0].shape) * per_output
