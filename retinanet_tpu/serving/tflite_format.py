"""Conversion to TFLite, in float32, float16 or int8.

The network, which is what a kind changes, and the reading of its predictions, which
stays float32, are converted apart and joined. In one piece, anchors would be rounded
with the weights, and TensorFlow 2.20 crashes (segmentation fault) on int8.
"""

import importlib
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
import tensorflow as tf

from retinanet_tpu import errors

KINDS = ("float32", "float16", "int8")


def convert(
    network_fn: Callable[[tf.Tensor], Any],
    read_fn: Callable[[Any], dict[str, tf.Tensor]],
    input_spec: tf.TensorSpec,
    *,
    kind: str = "float32",
    calibration_inputs: Sequence[np.ndarray] | None = None,
) -> bytes:
    """Returns a model of read_fn(network_fn(inputs)), of TFLite's own operations only.

    Args:
      network_fn: what float16 and int8 are for; returns any structure of tensors.
      read_fn: from that structure to outputs by name; stays float32.
      input_spec: of the input, with its name; the shape is fixed, so B is too.
      kind: of KINDS. float16 halves the weights; in int8 weights and activations have 8
        bits, but the input, and what read_fn is given, stay float32.
      calibration_inputs: float32 [H, W, 3] each, inputs such as the network will see:
        their activations' ranges become int8's. Only int8 needs them.
    Returns:
      The content of a .tflite file with the signature serving_default.
    Raises:
      UserError: an unknown kind, or int8 without inputs to calibrate on.
    Source: ours; int8 is post-training quantization, arXiv:1712.05877, with a scale
      for each output channel of a kernel.
    """
    if kind not in KINDS:
        raise errors.UserError(
            f"TFLite kind {kind!r} is not one of {', '.join(KINDS)}."
        )
    if kind == "int8" and (calibration_inputs is None or not len(calibration_inputs)):
        raise errors.UserError(
            "TFLite int8 is calibrated on images and got none; give some like those "
            "that the network will see."
        )
    network = tf.function(network_fn).get_concrete_function(input_spec)
    predictions = network.structured_outputs
    specs = {
        name: tf.TensorSpec(x.shape, x.dtype, name=name)
        for name, x in _by_name(predictions).items()
    }

    def read(named):
        flat = [named[name] for name in specs]
        return read_fn(tf.nest.pack_sequence_as(predictions, flat))

    name = input_spec.name
    parts = [
        _converted(
            lambda named: _by_name(network(named[name])),
            {name: input_spec},
            kind=kind,
            calibration_inputs=calibration_inputs,
        ),
        _converted(read, specs, kind="float32"),
    ]
    return _joined(*parts)


def interpreter(content: bytes, *, num_threads: int | None = None) -> Any:
    """Returns a tf.lite.Interpreter of a .tflite file's content.

    Where TensorFlow has none any more, it is its successor, of the package
    ai-edge-litert, which works alike.

    Args:
      content: of the file.
      num_threads: of the CPU; None leaves it to the runtime.
    Raises:
      UserError: there is neither, or the content is no model.
    """
    interpreter_class = getattr(tf.lite, "Interpreter", None)
    if interpreter_class is None:
        try:
            litert = importlib.import_module("ai_edge_litert.interpreter")
        except ImportError as error:
            raise errors.UserError(
                f"TensorFlow {tf.__version__} has no tf.lite.Interpreter, and its "
                "successor is missing: pip install ai-edge-litert"
            ) from error
        interpreter_class = litert.Interpreter
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
        return interpreter_class(model_content=content, num_threads=num_threads)


def _by_name(structure) -> dict[str, Any]:
    """Returns the tensors of a structure, named in its order."""
    return {f"prediction{i}": x for i, x in enumerate(tf.nest.flatten(structure))}


def _converted(
    fn: Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]],
    specs: Mapping[str, tf.TensorSpec],
    *,
    kind: str,
    calibration_inputs: Sequence[np.ndarray] | None = None,
) -> bytes:
    """Returns a model of a function from tensors to tensors, both by name."""
    concrete = tf.function(lambda **named: fn(named)).get_concrete_function(**specs)
    # The converter saves what owns the variables; a Server would bring its signatures.
    owner = tf.Module()
    owner.weights = list(concrete.variables)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], owner)
    if kind != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if kind == "int8":
        converter.representative_dataset = lambda: (
            [x[None]] for x in calibration_inputs
        )
    return converter.convert()


def _joined(first: bytes, second: bytes) -> bytes:
    """Returns a model that gives the outputs of `first`, by name, to `second`."""
    # tf.lite is loaded when it is first used, and so should these be.
    utils = importlib.import_module("tensorflow.lite.tools.flatbuffer_utils")
    model, tail = (
        utils.read_model_from_bytearray(bytearray(part)) for part in (first, second)
    )
    _renumber(
        tail,
        num_buffers=len(model.buffers),
        num_codes=len(model.operatorCodes),
        num_subgraphs=len(model.subgraphs) - 1,  # The first ones become one.
    )
    _append(model, tail)
    _make_names_unique(model)
    # What it says of versions and of the conversion holds for `first` alone.
    model.metadata = None
    builder = _Builder(len(first) + len(second))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _renumber(model, *, num_buffers, num_codes, num_subgraphs):
    """Makes room for a model before this one: all indices but those of tensors rise."""
    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            if tensor.buffer:  # The first is empty and stands for none, in any model.
                tensor.buffer += num_buffers
        for operator in subgraph.operators:
            operator.opcodeIndex += num_codes
            for options in (operator.builtinOptions, operator.builtinOptions2):
                for key, value in vars(options).items() if options else ():
                    if key.endswith("SubgraphIndex") and value >= 0:
                        setattr(options, key, value + num_subgraphs)


def _append(model, tail):
    """Adds all of a renumbered model, wiring its first subgraph to that of `model`."""
    graph, tail_graph = model.subgraphs[0], tail.subgraphs[0]
    signature, tail_signature = model.signatureDefs[0], tail.signatureDefs[0]
    given = {entry.name: entry.tensorIndex for entry in signature.outputs}
    num_tensors = len(graph.tensors), len(tail_graph.tensors)
    # The last place is that of index -1: an optional input that is left out.
    places = np.append(np.arange(num_tensors[1]) + num_tensors[0], -1).astype(np.int32)
    for entry in tail_signature.inputs:
        places[entry.tensorIndex] = given[entry.name]
    for operator in tail_graph.operators:
        operator.inputs = places[operator.inputs]
        operator.outputs = places[operator.outputs]
    for entry in tail_signature.outputs:
        entry.tensorIndex = int(places[entry.tensorIndex])
    graph.tensors += tail_graph.tensors
    graph.operators += tail_graph.operators
    graph.outputs = places[tail_graph.outputs]
    signature.outputs = tail_signature.outputs
    model.subgraphs += tail.subgraphs[1:]
    model.buffers += tail.buffers
    model.operatorCodes += tail.operatorCodes


def _make_names_unique(model):
    """Renames tensors that share a name; inputs and outputs keep theirs.

    OpenVINO, for one, finds tensors by name.
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


def _unused(name, names):
    candidates = (name + b"_%d" % i for i in itertools.count(2))
    return next(x for x in itertools.chain([name], candidates) if x not in names)


class _Builder(flatbuffers.Builder):
    """Begins every vector where the schema wants constants, at a multiple of 16.

    The code generated for Python leaves that out, and kernels may rely on it.
    """

    def StartVector(self, elem_size, num_elems, alignment):
        return super().StartVector(elem_size, num_elems, max(alignment, 16))
