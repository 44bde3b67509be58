"""Functions of TensorFlow as ONNX graphs, for onnxruntime and for TensorRT."""

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

import retinanet_tpu
from retinanet_tpu import errors

# The newest that tf2onnx 1.17 writes; it has all operations of the graph.
OPSET = 18
# The dynamic dimensions of a tensor, by axis.
_DIMENSIONS = ("batch", "height", "width")
_TENSORRT_DOMAIN = "trt.plugins"
# Under this score the plugin's kernel counts every pair of box and class as found, and
# fills up with scores of -32768 (efficientNMSInference.cu, EfficientNMSDenseIndex).
LOWEST_SCORE_THRESHOLD = 0.007


def check_installed() -> None:
    """Checks that ONNX files can be made and run here.

    Raises:
      UserError: a package is missing.
    """
    for name in ("onnx", "tf2onnx", "onnxruntime"):
        _package(name)


def convert(
    fn: Callable[..., Mapping[str, tf.Tensor]],
    input_signature: Sequence[tf.TensorSpec],
    *,
    metadata: Mapping[str, str] | None = None,
    opset: int = OPSET,
) -> Any:
    """Returns a function as an onnx.ModelProto, its variables as constants.

    What only prepares constants is folded away, and batch normalization goes into the
    convolutions; weights that several levels share come once for each level therefore.

    Args:
      fn: tensors -> named tensors; a tf.function or what can become one.
      input_signature: what fn takes, with names. Dimensions of None stay dynamic, as
        batch, height and width; outputs may only differ in their batch.
      metadata: texts by name, for the model's metadata_props.
      opset: version of ONNX's operators.
    Returns:
      The model, with fn's names of inputs and outputs.
    Raises:
      UserError: a package is missing, fn computes in bfloat16, or does what ONNX
        cannot.
    """
    onnx = _package("onnx")
    tf2onnx = _package("tf2onnx.convert")
    if not hasattr(fn, "get_concrete_function"):
        fn = tf.function(fn)
    with _quiet():
        model, _ = tf2onnx.from_function(
            fn, input_signature=input_signature, opset=opset
        )
    if any(
        weight.data_type == onnx.TensorProto.BFLOAT16
        for weight in model.graph.initializer
    ):
        raise errors.UserError(
            "The network computes in bfloat16, for which ONNX has no convolutions; "
            "export with COMPUTE_DTYPE = 'float32'."
        )
    _name_passed_states(model.graph)
    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        for name, dimension in zip(_DIMENSIONS, dimensions, strict=False):
            if not dimension.HasField("dim_value"):
                dimension.dim_param = name
    model.producer_name = "retinanet_tpu"
    model.producer_version = retinanet_tpu.__version__
    model.graph.name = "retinanet"
    model.graph.doc_string = ""
    onnx.helper.set_model_props(model, dict(metadata or {}))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise errors.UserError(
            f"ONNX {opset} cannot say what fn does: {error}"
        ) from error
    return model


def _name_passed_states(graph: Any) -> None:
    """Gives the states that a loop's body only passes on another name as its outputs.

    OpenVINO 2026.4 does not read a body whose input is its output.
    """
    inputs = {value.name for value in graph.input}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _name_passed_states(attribute.g)
    for output in graph.output:
        if output.name in inputs:
            passed = f"{output.name}/passed"
            graph.node.add(op_type="Identity", input=[output.name], output=[passed])
            output.name = passed


def make_session(model: Any) -> Any:
    """Returns an onnxruntime.InferenceSession of an onnx.ModelProto, on the CPU.

    Raises:
      UserError: onnxruntime is missing.
    """
    onnxruntime = _package("onnxruntime")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def with_efficient_nms(
    model: Any,
    *,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
    class_agnostic: bool,
) -> Any:
    """Returns a copy of a raw form that ends in TensorRT's non-maximum suppression.

    The node, EfficientNMS_TRT version 1, is a plugin that comes with TensorRT; nothing
    else runs it. Its attributes:
      score_threshold, iou_threshold: a pair of box and class with a score under the
        one, or an IoU with a better pair at or over the other, is dropped. `nms.NMS`
        drops at the first and over the second, so both are the next float32 up.
      max_output_boxes: D.
      class_agnostic: 1 lets pairs of different classes suppress each other.
      background_class: -1, there is none.
      score_activation: 0, the scores are probabilities and not logits.
      box_coding: 0, corners; which axis comes first does not matter to it.
    Its outputs:
      num_detections: int32 [B, 1].
      detection_boxes_yxyx: float32 [B, D, 4], px of the inputs.
      detection_scores: float32 [B, D], falling.
      detection_classes: int32 [B, D], index of categories.json and not the id there.
    Past num_detections all is 0. It looks at the 4,096 best pairs, and equal scores
    come in any order.

    Args:
      model: with outputs boxes_yxyx float32 [B, A, 4], px, and scores float32
        [B, A, K], probabilities; stays as it is.
      iou_threshold: as of `nms.NMS`.
      score_threshold: as of `nms.NMS`.
      max_detections: D.
      class_agnostic: whether suppression is global.
    Raises:
      UserError: onnx is missing.

    Source: NVIDIA/TensorRT, plugin/efficientNMSPlugin: README.md, and the .cu and .cuh
      beside it.
    """
    onnx = _package("onnx")
    result = onnx.ModelProto()
    result.CopyFrom(model)
    float32, int32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    outputs = [
        ("num_detections", int32, ["batch", 1]),
        ("detection_boxes_yxyx", float32, ["batch", max_detections, 4]),
        ("detection_scores", float32, ["batch", max_detections]),
        ("detection_classes", int32, ["batch", max_detections]),
    ]
    node = onnx.helper.make_node(
        "EfficientNMS_TRT",
        ["boxes_yxyx", "scores"],
        [name for name, _, _ in outputs],
        name="non_maximum_suppression",
        # Not ONNX's own domain, where a checker would miss the operator.
        domain=_TENSORRT_DOMAIN,
        plugin_version="1",
        score_threshold=_next_float32(score_threshold),
        iou_threshold=_next_float32(iou_threshold),
        max_output_boxes=max_detections,
        class_agnostic=int(class_agnostic),
        background_class=-1,
        score_activation=0,
        box_coding=0,
    )
    result.graph.node.append(node)
    del result.graph.output[:]
    result.graph.output.extend(
        onnx.helper.make_tensor_value_info(*output) for output in outputs
    )
    result.opset_import.append(onnx.helper.make_opsetid(_TENSORRT_DOMAIN, 1))
    onnx.checker.check_model(result)
    return result


def _package(name: str) -> ModuleType:
    """Imports a module of an optional package."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise errors.UserError(
            f"{name.partition('.')[0]} is missing: pip install -e '.[onnx]'"
        ) from error


def _next_float32(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps tf2onnx from telling how it goes."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
