"""Quantization-aware training: a network that computes as its int8 export will.

`FakeQuantization` runs the inference graph of a float network operation by operation,
and rounds each tensor that TFLite stores in 8 bits. So networks need no code for it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.model import traced_graph

# From normalized images, float32 [B, H, W, 3], to any structure of tensors.
ForwardFn = Callable[[tf.Tensor], Any]
# (x, name of the position) -> x rounded
_QuantizeFn = Callable[[tf.Tensor, str], tf.Tensor]

_CONVOLUTIONS = ("Conv2D", "DepthwiseConv2dNative")
_SUMS = ("Add", "AddV2", "BiasAdd")
_RELUS = ("Relu", "Relu6")
# TFLite computes these and a Relu after them as one operation.
_FUSES_RELU = (*_SUMS, "Sub", "Mul", "ConcatV2", "AvgPool")
# Each value of their outputs is a value of the input or 0, so it is rounded already.
_SAME_VALUES = (
    "BroadcastTo",
    "ExpandDims",
    "Identity",
    "MaxPool",
    "Pad",
    "Reshape",
    "ResizeNearestNeighbor",
    "Slice",
    "Squeeze",
    "StridedSlice",
    "Tile",
    "Transpose",
)
_NEEDS_RANGE = ("BroadcastTo", "Tile")
# The output ranges that TFLite prescribes.
_FIXED_RANGES = {
    "Sigmoid": (0.0, 255 / 256),
    "Softmax": (0.0, 255 / 256),
    "Tanh": (-1.0, 127 / 128),
}
_IMAGES = "images"  # The position of the function's argument.
# Zeros need a scale too.
_LEAST_WEIGHT = 1e-12
_LEAST_RANGE = 1e-6


class FakeQuantization(tf.Module):
    """Rounds activations and kernels to 8 bits in training and inference.

    Batch normalization uses its moving statistics and is part of the kernel that is
    rounded: kernel * gamma / sqrt(moving variance + epsilon). Stochastic depth is off.
    The gradient of rounding is 1 inside the range of a tensor and 0 outside.

    Attributes:
      positions: The names of the tensors that have a range, in the order of `ranges`.
      ranges: float32 [N, 2], the moving averages of the least and the greatest value at
        each position. Both are 0 until the first training step.
    Source: arXiv:1712.05877, section 3; scales by channel as in arXiv:1806.08342.
    """

    def __init__(
        self,
        forward_fn: ForwardFn,
        input_spec: tf.TensorSpec,
        *,
        momentum: float = 0.99,
    ):
        """Initializes the ranges. Call it eagerly, in the strategy's scope.

        Args:
          forward_fn: The inference of the network, in float32.
          input_spec: The spec of images that forward_fn accepts, float32 [B, H, W, 3].
          momentum: The decay of the ranges, in [0, 1).
        """
        super().__init__("quantization")
        # TensorFlow 2.20's remapper, which fuses operations on CPUs, aborts the process
        # on squeeze-and-excitation with rounded tensors. This holds for the process.
        tf.config.optimizer.set_experimental_options({"remapping": False})
        self.momentum = momentum
        self.positions = _list_positions(forward_fn, input_spec)
        with self.name_scope:
            self.ranges = replicas.make_variable(
                tf.zeros([len(self.positions), 2]), name="moving_ranges"
            )

    # AutoGraph would convert each call below, which takes minutes.
    @tf.autograph.experimental.do_not_convert
    def __call__(
        self, forward_fn: ForwardFn, x: tf.Tensor, *, is_training: bool
    ) -> Any:
        """Returns forward_fn(x) in 8 bits. Training moves the ranges.

        Args:
          forward_fn: The function of the constructor.
          x: float32 [B, H, W, 3].
          is_training: Whether to move the ranges to those of the batch. In the first
            step, which has no ranges yet, tensors keep their values.
        """
        ranges = tf.convert_to_tensor(self.ranges)
        has_range = ranges[:, 0] < ranges[:, 1]
        batch_ranges: dict[str, tf.Tensor] = {}

        def quantize(x: tf.Tensor, name: str) -> tf.Tensor:
            i = self.positions.index(name)
            rounded = round_to_range(x, ranges[i, 0], ranges[i, 1])
            if not is_training:
                return rounded
            batch_ranges.setdefault(name, _range_with_zero(x))
            return tf.where(has_range[i], rounded, x)

        outputs = _Run(forward_fn, x, quantize).outputs()
        if is_training:
            batch = replicas.cross_replica_mean(tf.stack([*batch_ranges.values()]))
            moved = self.momentum * ranges + (1 - self.momentum) * batch
            self.ranges.assign(tf.where(has_range[:, None], moved, batch))
        return outputs


# Called with (forward function, spec of its input).
QuantizeFn = Callable[..., FakeQuantization]


def round_to_range(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Returns x rounded to the nearest of 256 values from low to high.

    Args:
      x: float32, of any shape.
      low: float32 scalar, at most 0. It is moved so that 0 is one of the values.
      high: float32 scalar, at least 0.
    """
    return tf.quantization.fake_quant_with_min_max_vars(x, low, high)


def round_kernel(kernel: tf.Tensor) -> tf.Tensor:
    """Returns a kernel whose channels are -127 to 127 times a scale for each of them.

    Args:
      kernel: float32 [..., C]. The scale of a channel is its greatest value / 127.
    """
    axes = list(range(kernel.shape.rank - 1))
    greatest = tf.reduce_max(tf.abs(tf.stop_gradient(kernel)), axes)
    greatest = tf.maximum(greatest, _LEAST_WEIGHT)
    return tf.quantization.fake_quant_with_min_max_vars_per_channel(
        kernel, -greatest, greatest, narrow_range=True
    )


def _range_with_zero(x: tf.Tensor) -> tf.Tensor:
    """Returns the least and the greatest value of x and 0, float32 [2]."""
    x = tf.stop_gradient(x)
    least = tf.minimum(tf.reduce_min(x), 0)
    return tf.stack([least, tf.maximum(tf.reduce_max(x), _LEAST_RANGE)])


def _list_positions(forward_fn: ForwardFn, spec: tf.TensorSpec) -> tuple[str, ...]:
    """Returns the names of the tensors that need a range."""
    names: dict[str, None] = {}

    def quantize(x: tf.Tensor, name: str) -> tf.Tensor:
        names[name] = None
        return x

    @tf.function(autograph=False)
    def trace(x):
        return _Run(forward_fn, x, quantize).outputs()

    trace.get_concrete_function(spec)
    return tuple(names)


@dataclasses.dataclass
class _Accumulator:
    """The exact result of a convolution with a bias, before it is rounded.

    Attributes:
      op: The convolution.
      x: Its input.
      kernel: Its kernel times the scales of normalizations.
      bias: float32 [C], or None.
    """

    op: tf.Operation
    x: tf.Tensor
    kernel: tf.Tensor
    bias: tf.Tensor | None = None

    def scaled(self, scale: tf.Tensor) -> "_Accumulator":
        """Returns the accumulator times float32 [C]."""
        is_depthwise = self.op.type == "DepthwiseConv2dNative"
        factor = tf.reshape(
            scale, [-1, self.kernel.shape[-1]] if is_depthwise else [-1]
        )
        bias = None if self.bias is None else self.bias * scale
        return dataclasses.replace(self, kernel=self.kernel * factor, bias=bias)

    def shifted(self, shift: tf.Tensor) -> "_Accumulator":
        """Returns the accumulator plus float32 [C]."""
        bias = shift if self.bias is None else self.bias + shift
        return dataclasses.replace(self, bias=bias)

    def value(self) -> tf.Tensor:
        """Returns the convolution by the rounded kernel, plus the bias."""
        kernel = self.kernel
        if self.op.type == "DepthwiseConv2dNative":
            # Each channel of the output has a scale.
            flat = tf.reshape(kernel, [*kernel.shape[:2], -1])
            kernel = tf.reshape(round_kernel(flat), kernel.shape)
        else:
            kernel = round_kernel(kernel)
        (y,) = traced_graph.run(self.op, [self.x, kernel])
        return y if self.bias is None else tf.nn.bias_add(y, self.bias)


class _Run:
    """A run of a function in which the tensors of 8 bits are rounded."""

    def __init__(self, fn: ForwardFn, x: tf.Tensor, quantize_fn: _QuantizeFn):
        """Traces the function.

        Args:
          fn: The function.
          x: Its argument.
          quantize_fn: Rounds a tensor, given also the name of its position.
        """
        self._graph = traced_graph.TracedGraph(fn, x)
        self._quantize_fn = quantize_fn
        self._values: dict[str, Any] = dict(self._graph.inputs)
        argument = next(iter(self._values))
        self._values[argument] = quantize_fn(x, _IMAGES)
        # The tensors that depend on the argument; all others are parameters.
        self._activations = {argument}
        # The positions of the tensors that are rounded, by the names of the tensors.
        self._positions = {argument: _IMAGES}
        self._consumers: dict[str, list[str]] = {}
        for op in self._graph.operations:
            for tensor in op.inputs:
                self._consumers.setdefault(tensor.name, []).append(op.type)
        for tensor in self._graph.outputs:
            self._consumers.setdefault(tensor.name, []).append("")

    def outputs(self) -> Any:
        """Returns the result of the function, rounded."""
        for op in self._graph.operations:
            values = self._operation(op)
            for tensor, value in zip(op.outputs, values, strict=True):
                self._values[tensor.name] = value
        return self._graph.pack([self._rounded(x) for x in self._graph.outputs])

    def _operation(self, op: tf.Operation) -> list[Any]:
        """Returns the outputs of an operation: tensors, variables or accumulators."""
        active = [self._is_activation(x) for x in op.inputs]
        if not any(active) or op.outputs[0].dtype != tf.float32:
            return traced_graph.run(op, [self._rounded(x) for x in op.inputs])
        self._activations.update(x.name for x in op.outputs)
        if op.type in _CONVOLUTIONS and not active[1]:
            x, kernel = (self._rounded(tensor) for tensor in op.inputs)
            return [_Accumulator(op, x, kernel)]
        accumulator = self._accumulated(op)
        if accumulator is not None:
            return [accumulator]
        if op.type in _RELUS and self._consumers[op.inputs[0].name] == [op.type]:
            # TFLite does not store the input of a Relu that is its only consumer.
            inputs = [self._exact(op.inputs[0])]
        else:
            inputs = [self._rounded(x) for x in op.inputs]
        outputs = traced_graph.run(op, inputs)
        if op.type in _SAME_VALUES:
            return [self._rounded_again(op, outputs[0])]
        if self._is_fused(op):
            return outputs
        if op.type in _FIXED_RANGES:
            return [round_to_range(x, *_FIXED_RANGES[op.type]) for x in outputs]
        return [
            self._quantize(tensor, value)
            for tensor, value in zip(op.outputs, outputs, strict=True)
        ]

    def _quantize(self, tensor: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        """Returns the value of a tensor rounded to a range of its own."""
        position = self._positions[tensor.name] = tensor.op.name
        return self._quantize_fn(value, position)

    def _rounded_again(self, op: tf.Operation, value: tf.Tensor) -> tf.Tensor:
        """Returns the output of an operation that has the range of its input."""
        position = self._positions.get(op.inputs[0].name)
        if position is None:
            return value
        self._positions[op.outputs[0].name] = position
        # This changes no value. Without it TFLite computes BroadcastTo in float32.
        return self._quantize_fn(value, position) if op.type in _NEEDS_RANGE else value

    def _accumulated(self, op: tf.Operation) -> _Accumulator | None:
        """Returns the accumulator times or plus a vector if this is the operation."""
        if op.type not in (*_SUMS, "Mul"):
            return None
        one, other = op.inputs
        if self._is_activation(other):
            one, other = other, one
        accumulator, vector = self._values[one.name], self._values[other.name]
        is_vector = not self._is_activation(other) and other.shape.num_elements() > 1
        if not isinstance(accumulator, _Accumulator) or not is_vector:
            return None
        vector = tf.reshape(vector, [-1])
        if op.type == "Mul":
            return accumulator.scaled(vector)
        return accumulator.shifted(vector)

    def _is_activation(self, tensor: tf.Tensor) -> bool:
        return tensor.name in self._activations

    def _is_fused(self, op: tf.Operation) -> bool:
        """Returns whether TFLite computes the Relu after an operation with it."""
        (consumer, *others) = self._consumers.get(op.outputs[0].name, [""])
        return op.type in _FUSES_RELU and consumer in _RELUS and not others

    def _exact(self, tensor: tf.Tensor) -> tf.Tensor:
        """Returns the value of a tensor; that of an accumulator is not rounded."""
        value = self._values[tensor.name]
        return value.value() if isinstance(value, _Accumulator) else value

    def _rounded(self, tensor: tf.Tensor) -> Any:
        """Returns the value of a tensor; that of an accumulator is rounded, once."""
        value = self._values[tensor.name]
        if isinstance(value, _Accumulator):
            value = self._quantize(tensor, value.value())
            self._values[tensor.name] = value
        return value
