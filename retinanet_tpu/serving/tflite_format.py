"""Converts a network to TFLite, in float32, float16 or int8.

The network and its postprocessing are converted separately and joined. Only the network
is quantized; the postprocessing stays float32. If they were converted in one piece,
anchors would be rounded with the weights, and TensorFlow 2.20 crashes (segmentation
fault) on int8.
"""

import importlib
import itertools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
import tensorflow as tf

# TensorFlow's public interface has no function that replaces variables by constants.
from tensorflow.python.framework import convert_to_constants

from retinanet_tpu import errors

KINDS = ("float32", "float16", "int8")

# Inputs -> any structure of tensors.
NetworkFn = Callable[[tf.Tensor], Any]
# That structure -> outputs by name.
ReadFn = Callable[[Any], dict[str, tf.Tensor]]
_NamedFn = Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]


def convert(
    network_fn: NetworkFn,
    read_fn: ReadFn,
    input_spec: tf.TensorSpec,
    *,
    kind: str = "float32",
    calibration_inputs: Sequence[np.ndarray] | None = None,
) -> bytes:
    """Converts read_fn(network_fn(inputs)), with TFLite's own operations only.

    Args:
      network_fn: The part that float16 and int8 quantize.
      read_fn: The postprocessing; stays float32.
      input_spec: The spec of the input, with its name. The shape, including B, is
        fixed.
      kind: The kind, from KINDS. float16 halves the size of the weights. In int8
        weights and activations have 8 bits, but the input and read_fn's inputs stay
        float32.
      calibration_inputs: The typical inputs of the network, float32 [H, W, 3] each.
        Their activations determine int8's ranges. Only int8 requires them, unless
        network_fn rounds to ranges of its own, see `quantization.FakeQuantization`.
    Returns:
      The content of a .tflite file with the signature serving_default.
    Raises:
      UserError: The kind is unknown, int8 has no inputs to calibrate on, or network_fn
        is quantized and the kind is float16.
    Source: ours; int8 as in arXiv:1712.05877, with a scale for each output channel of
      a kernel.
    """
    if kind not in KINDS:
        raise errors.UserError(
            f"TFLite kind {kind!r} is not one of {', '.join(KINDS)}."
        )
    network = tf.function(network_fn, autograph=False).get_concrete_function(input_spec)
    if _has_ranges(network):
        calibration_inputs = None
        if kind == "float16":
            raise errors.UserError(
                "TFLite float16 of a quantized network would be int8; export "
                "tflite_int8, or tflite_float16 of the run without model/int8.gin."
            )
    elif kind == "int8" and (calibration_inputs is None or not len(calibration_inputs)):
        raise errors.UserError(
            "TFLite int8 is calibrated on images and got none; give images like those "
            "that the model will process."
        )
    network = _with_constant_kernels(network)
    predictions = network.structured_outputs
    specs = {
        name: tf.TensorSpec(x.shape, x.dtype, name=name)
        for name, x in _by_name(predictions).items()
    }

    def read(named: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        flat = [named[name] for name in specs]
        return read_fn(tf.nest.pack_sequence_as(predictions, flat))

    name = input_spec.name
    parts = [
        _convert_part(
            lambda named: _by_name(network(named[name])),
            {name: input_spec},
            kind=kind,
            calibration_inputs=calibration_inputs,
        ),
        _convert_part(read, specs, kind="float32"),
    ]
    return _join_models(*parts)


def make_interpreter(content: bytes, *, num_threads: int | None = None) -> Any:
    """Returns a tf.lite.Interpreter of a .tflite file's content.

    If TensorFlow no longer has one, it is the Interpreter of its successor, the package
    ai-edge-litert, which has the same interface.

    Args:
      content: The content of the file.
      num_threads: The number of CPU threads; None leaves it to the runtime.
    Raises:
      UserError: Neither interpreter is installed.
    """
    interpreter_class = getattr(tf.lite, "Interpreter", None)
    if interpreter_class is None:
        try:
            litert = importlib.import_module("ai_edge_litert.interpreter")
        except ImportError as error:
            raise errors.MissingPackageError(
                f"TensorFlow {tf.__version__} has no tf.lite.Interpreter, and its "
                "successor is missing: pip install ai-edge-litert"
            ) from error
        interpreter_class = litert.Interpreter
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
        return interpreter_class(model_content=content, num_threads=num_threads)


def _has_ranges(fn: tf.types.experimental.ConcreteFunction) -> bool:
    """Returns True if the converter finds int8's ranges in the function itself."""
    return any(op.type.startswith("FakeQuant") for op in fn.graph.get_operations())


def _by_name(structure: Any) -> dict[str, Any]:
    """Returns the tensors of a structure, with names in its order."""
    return {f"prediction{i}": x for i, x in enumerate(tf.nest.flatten(structure))}


def _convert_part(
    fn: _NamedFn,
    specs: Mapping[str, tf.TensorSpec],
    *,
    kind: str,
    calibration_inputs: Sequence[np.ndarray] | None = None,
) -> bytes:
    """Converts a function from tensors to tensors, both by name."""
    function = tf.function(lambda **named: fn(named), autograph=False)
    concrete = function.get_concrete_function(**specs)
    # The converter saves the owner of the variables; a ServingModule would add its
    # signatures.
    owner = tf.Module()
    owner.weights = list(concrete.variables)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], owner)
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if calibration_inputs is not None and kind == "int8":
        converter.representative_dataset = lambda: (
            [x[None]] for x in calibration_inputs
        )
    return converter.convert()


def _with_constant_kernels(
    network: tf.types.experimental.ConcreteFunction,
) -> tf.types.experimental.ConcreteFunction:
    """Computes the kernels of convolutions that are functions of weights.

    Those of grouped convolutions are. TFLite's converter leaves the computation to each
    call, and its int8 convolutions require constant kernels.

    The converter finds the scales of a kernel that `quantization.FakeQuantization` has
    rounded in its values.

    Args:
      network: A function from one tensor to any structure of tensors.
    Returns:
      The function itself, if all kernels are weights; else one with constant kernels.
    """
    frozen = convert_to_constants.convert_variables_to_constants_v2(
        network, lower_control_flow=False
    )
    convs = [op for op in frozen.graph.get_operations() if op.type == "Conv2D"]
    computed = [op for op in convs if op.inputs[1].op.type not in ("Const", "Identity")]
    if not computed:
        return network
    graph = frozen.graph.as_graph_def()
    nodes = {node.name: node for node in graph.node}
    for op in computed:
        value = frozen.prune([], op.inputs[1])()
        name = f"{op.name}/constant_kernel"
        constant = graph.node.add(name=name, op="Const")
        constant.attr["dtype"].type = value.dtype.as_datatype_enum
        constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
        nodes[op.name].input[1] = name
    imported = tf.compat.v1.wrap_function(
        lambda: tf.graph_util.import_graph_def(graph, name=""), []
    )
    tensors = imported.graph.get_tensor_by_name
    folded = imported.prune(
        *([tensors(x.name) for x in ends] for ends in (frozen.inputs, frozen.outputs))
    )

    def fn(x: tf.Tensor) -> Any:
        return tf.nest.pack_sequence_as(network.structured_outputs, folded(x))

    (input_spec,) = network.structured_input_signature[0]
    return tf.function(fn, autograph=False).get_concrete_function(input_spec)


def _join_models(first: bytes, second: bytes) -> bytes:
    """Returns a model that passes the outputs of `first`, by name, to `second`."""
    # tf.lite is loaded at its first use; this module must not load it earlier.
    utils = importlib.import_module("tensorflow.lite.tools.flatbuffer_utils")
    model, tail = (
        utils.read_model_from_bytearray(bytearray(part)) for part in (first, second)
    )
    _renumber(
        tail,
        num_buffers=len(model.buffers),
        num_codes=len(model.operatorCodes),
        num_subgraphs=len(model.subgraphs) - 1,  # The two first subgraphs are joined.
    )
    _append(model, tail)
    _make_names_unique(model)
    # The metadata describes versions and conversion of `first` alone.
    model.metadata = None
    builder = _Builder(len(first) + len(second))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _renumber(
    model: Any, *, num_buffers: int, num_codes: int, num_subgraphs: int
) -> None:
    """Raises all indices but those of tensors, for a model that is put before."""
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            if tensor.buffer:  # Index 0 means no buffer, in any model.
                tensor.buffer += num_buffers
        for operator in subgraph.operators:
            operator.opcodeIndex += num_codes
            for options in (operator.builtinOptions, operator.builtinOptions2):
                for key, value in vars(options).items() if options else ():
                    if key.endswith("SubgraphIndex") and value >= 0:
                        setattr(options, key, value + num_subgraphs)


def _append(model: Any, tail: Any) -> None:
    """Appends a renumbered model; its first subgraph reads the outputs of `model`."""
    graph = model.subgraphs[0]
    tail_graph = tail.subgraphs[0]
    signature = model.signatureDefs[0]
    tail_signature = tail.signatureDefs[0]
    output_indices = {entry.name: entry.tensorIndex for entry in signature.outputs}
    # The new index of each tensor of `tail`. The last entry is for index -1, an
    # optional input that is left out.
    new_indices = np.arange(len(tail_graph.tensors)) + len(graph.tensors)
    new_indices = np.append(new_indices, -1).astype(np.int32)
    for entry in tail_signature.inputs:
        new_indices[entry.tensorIndex] = output_indices[entry.name]
    for operator in tail_graph.operators:
        operator.inputs = new_indices[operator.inputs]
        operator.outputs = new_indices[operator.outputs]
    for entry in tail_signature.outputs:
        entry.tensorIndex = int(new_indices[entry.tensorIndex])
    graph.tensors += tail_graph.tensors
    graph.operators += tail_graph.operators
    graph.outputs = new_indices[tail_graph.outputs]
    signature.outputs = tail_signature.outputs
    model.subgraphs += tail.subgraphs[1:]
    model.buffers += tail.buffers
    model.operatorCodes += tail.operatorCodes


def _make_names_unique(model: Any) -> None:
    """Renames tensors that share a name; inputs and outputs keep theirs.

    Some runtimes, such as OpenVINO, identify tensors by name.
    """
    graph = model.subgraphs[0]
    ends = [graph.tensors[i] for i in (*graph.inputs, *graph.outputs)]
    names = {tensor.name for tensor in ends}
    is_end = set(map(id, ends))
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            if id(tensor) not in is_end:
                tensor.name = _unused(tensor.name, names)
                names.add(tensor.name)


def _unused(name: bytes, names: Collection[bytes]) -> bytes:
    candidates = (name + b"_%d" % i for i in itertools.count(2))
    return next(x for x in itertools.chain([name], candidates) if x not in names)


class _Builder(flatbuffers.Builder):
    """A builder that aligns every vector to 16 bytes.

    The schema requires this alignment of constants, and kernels may rely on it, but the
    code generated for Python does not do it.
    """

    def StartVector(self, elem_size: int, num_elems: int, alignment: int) -> int:
        return super().StartVector(elem_size, num_elems, max(alignment, 16))
