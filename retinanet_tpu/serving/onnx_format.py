"""Converts TensorFlow functions to ONNX graphs, for onnxruntime and TensorRT."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

import retinanet_tpu
from retinanet_tpu import errors
from retinanet_tpu.optional_packages import optional_import

if TYPE_CHECKING:
    import onnx
    import onnxruntime

# The newest that tf2onnx 1.17 writes; it has all operations of the graph.
OPSET = 18
# The names of a tensor's dynamic dimensions, by axis.
_DIMENSIONS = ("batch", "height", "width")
_EXTRA = "onnx"
_TENSORRT_DOMAIN = "trt.plugins"
# Below this score the plugin's kernel counts every pair of box and class as a
# detection, and pads with scores of -32768 (efficientNMSInference.cu,
# EfficientNMSDenseIndex).
LOWEST_SCORE_THRESHOLD = 0.007


def check_installed() -> None:
    """Checks that the packages that write and run ONNX files are installed.

    Raises:
      MissingPackageError: A package is missing.
    """
    for name in ("onnx", "tf2onnx", "onnxruntime"):
        optional_import(name, _EXTRA)


def convert(
    fn: Callable[..., Mapping[str, tf.Tensor]],
    input_signature: Sequence[tf.TensorSpec],
    *,
    metadata: Mapping[str, str] | None = None,
    opset: int = OPSET,
) -> "onnx.ModelProto":
    """Converts a function to ONNX, its variables as constants.

    Operations on constants are folded, and batch normalization is folded into the
    convolutions. Weights that several levels share are therefore stored once per level.

    Args:
      fn: A function from tensors to tensors by name; a tf.function or a function that
        tf.function accepts.
      input_signature: The specs of fn's arguments, with names. Dimensions of None stay
        dynamic, as batch, height and width. Only the batch of an output may be dynamic.
      metadata: The texts by name for the model's metadata_props.
      opset: The version of ONNX's operators.
    Returns:
      The model, with fn's names of inputs and outputs.
    Raises:
      UserError: A package is missing, fn computes in bfloat16, or fn has an operation
        that ONNX lacks.
    """
    onnx = optional_import("onnx", _EXTRA)
    tf2onnx = optional_import("tf2onnx.convert", _EXTRA)
    if not hasattr(fn, "get_concrete_function"):
        fn = tf.function(fn, autograph=False)
    with _only_tf2onnx_errors():
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
            f"The function cannot be expressed in ONNX opset {opset}: {error}"
        ) from error
    return model


def _name_passed_states(graph: "onnx.GraphProto") -> None:
    """Renames the outputs of loop bodies that are also their inputs.

    OpenVINO 2026.4 cannot read a loop body with an input as its output, so an Identity
    node is inserted between them.
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


def make_session(model: "onnx.ModelProto") -> "onnxruntime.InferenceSession":
    """Returns an onnxruntime session that runs a model on the CPU.

    Args:
      model: The model.
    Raises:
      MissingPackageError: onnxruntime is missing.
    """
    onnxruntime = optional_import("onnxruntime", _EXTRA)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def with_efficient_nms(
    model: "onnx.ModelProto",
    *,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
    class_agnostic: bool,
) -> "onnx.ModelProto":
    """Returns a copy of a raw model that ends in TensorRT's NMS.

    The node, EfficientNMS_TRT version 1, is a plugin of TensorRT; no other runtime has
    it. Its attributes:
      score_threshold: Pairs of box and class with a lower score are dropped.
      iou_threshold: A pair is dropped if its IoU with a better pair is at least this.
      max_output_boxes: D.
      class_agnostic: 1 lets pairs of different classes suppress each other.
      background_class: -1, there is none.
      score_activation: 0, the scores are probabilities and not logits.
      box_coding: 0, corners; the order of the axes has no effect.
    `nms.NMS` drops scores at its score threshold, and pairs above its IoU threshold.
    Both attributes are therefore the next larger float32.

    The node's outputs:
      num_detections: int32 [B, 1].
      detection_boxes_yxyx: float32 [B, D, 4], px of the inputs.
      detection_scores: float32 [B, D], falling.
      detection_classes: int32 [B, D], the index in categories.json, not the id there.
    All outputs are 0 past num_detections. The node considers the 4,096 best pairs. The
    order of equal scores is undefined.

    Args:
      model: The model with outputs boxes_yxyx float32 [B, A, 4], px, and scores float32
        [B, A, K], probabilities; it is not changed.
      iou_threshold: The IoU threshold of `nms.NMS`.
      score_threshold: The score threshold of `nms.NMS`.
      max_detections: The number of detections D.
      class_agnostic: Whether suppression is global.
    Raises:
      MissingPackageError: onnx is missing.

    Source: NVIDIA/TensorRT, plugin/efficientNMSPlugin: README.md, and the .cu and .cuh
      beside it.
    """
    onnx = optional_import("onnx", _EXTRA)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    float32 = onnx.TensorProto.FLOAT
    int32 = onnx.TensorProto.INT32
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
        # In ONNX's own domain a checker would report the operator as unknown.
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


def _next_float32(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))


@contextlib.contextmanager
def _only_tf2onnx_errors() -> Iterator[None]:
    """Hides tf2onnx's progress and warnings from the log."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
