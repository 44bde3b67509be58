"""Writes the files of an export and compares each with the checkpoint."""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, structures
from retinanet_tpu.data import category_map, transforms
from retinanet_tpu.detections import nms
from retinanet_tpu.estimator import log_levels
from retinanet_tpu.serving import (
    checked_detections,
    onnx_format,
    openvino_format,
    parity,
    server,
    tflite_format,
)

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_NUM_CHECKED = 4  # Images that each format is checked on.
# Each image takes seconds. From 32 to 128 images the AP of blood cells rose by less
# than noise.
_NUM_CALIBRATED = 32


class Format(NamedTuple):
    """A form of the model.

    Attributes:
      file: The name of its file in the export; "" for the SavedModel.
      description: A description for the log and the model card.
      tolerance: The allowed differences from the checkpoint's own detections.
    """

    file: str
    description: str
    tolerance: parity.Tolerance


_EXACT = parity.Tolerance(iou=0.99, score=1e-3)
# Other runtimes resize an image to the same values except in one pixel of ten thousand.
_CLOSE = parity.Tolerance(iou=0.95, score=5e-3, share=0.97, max_unmatched=2)
FORMATS = {
    "saved_model": Format("", "SavedModel, four signatures", _EXACT),
    "onnx": Format("model.onnx", "ONNX, whole, any batch and image size", _CLOSE),
    # bfloat16 has eight significant bits: scores move by thousandths, a few by more. On
    # a CPU without it the arithmetic is float32.
    "openvino": Format(
        "model_openvino.xml",
        "OpenVINO, in bfloat16 on CPUs that have it",
        parity.Tolerance(iou=0.8, score=0.05, share=0.9, max_unmatched=2),
    ),
    "tensorrt": Format("model_tensorrt.onnx", "ONNX for TensorRT's parser", _CLOSE),
    "tflite": Format("model.tflite", "TFLite, float32", _CLOSE),
    "tflite_float16": Format(
        "model_float16.tflite",
        "TFLite, weights in float16",
        parity.Tolerance(iou=0.9, score=0.02, share=0.95, max_unmatched=2),
    ),
    # Eight bits move scores by some hundredths. This only catches gross failures;
    # measure accuracy with retinanet-tpu evaluate_export.
    "tflite_int8": Format(
        "model_int8.tflite",
        "TFLite, convolutions in int8",
        parity.Tolerance(iou=0.5, score=0.1, share=0.7, max_unmatched=2),
    ),
}


def check_formats(
    formats: Sequence[str], nms_fn: nms.NMS, *, keep_aspect_ratio: bool = True
) -> None:
    """Checks that formats can be written, before anything is loaded.

    Args:
      formats: The names of the formats.
      nms_fn: The non-maximum suppression of the export.
      keep_aspect_ratio: Whether images keep their aspect ratio when they are resized.
    Raises:
      UserError: No name or an unknown name is given, a package is missing,
        TensorRT's own NMS lacks a setting, or images are stretched for a format whose
        programs resize them and keep the aspect ratio.
    """
    if not formats:
        raise errors.UserError(f"--format is ''; choose from {', '.join(FORMATS)}.")
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise errors.UserError(
            f"--format is {','.join(formats)!r}; choose from {', '.join(FORMATS)}. "
            f"There is no {unknown[0]!r}."
        )
    resized_outside = [f for f in formats if f.startswith(("tflite", "tensorrt"))]
    if resized_outside and not keep_aspect_ratio:
        raise errors.UserError(
            f"--format={resized_outside[0]} has no image resizing, and the programs "
            "that run it keep the aspect ratio, but Recipe.keep_aspect_ratio is False; "
            "use --format=saved_model,onnx,openvino or some of these."
        )
    if "tensorrt" in formats:
        _check_efficient_nms(nms_fn)
    if {"onnx", "openvino", "tensorrt"} & set(formats):
        onnx_format.check_installed()
    if "openvino" in formats:
        openvino_format.check_installed()


def num_images(formats: Sequence[str]) -> int:
    """Returns the number of images that `write_formats` uses.

    Args:
      formats: The names of the formats.
    """
    return _NUM_CALIBRATED if "tflite_int8" in formats else _NUM_CHECKED


def _check_efficient_nms(nms_fn: nms.NMS) -> None:
    """Raises UserError for settings that TensorRT's own NMS lacks."""
    if nms_fn.is_soft:
        raise errors.UserError(
            f"TensorRT's own NMS is hard, but NMS.variant is {nms_fn.variant!r}; set "
            "--nms=per_class_hard or --nms=global_hard."
        )
    if nms_fn.score_threshold < onnx_format.LOWEST_SCORE_THRESHOLD:
        raise errors.UserError(
            f"NMS.score_threshold is {nms_fn.score_threshold}; under "
            f"{onnx_format.LOWEST_SCORE_THRESHOLD} TensorRT's NMS returns boxes that "
            "are no detections: raise it."
        )


def write_formats(
    module: server.ServingModule,
    directory: str,
    *,
    formats: Sequence[str],
    images: Sequence[np.ndarray],
) -> dict[str, parity.ParityReport]:
    """Writes all formats except the SavedModel, then checks each.

    Args:
      module: The serving module of the checkpoint.
      directory: The directory of the export. It contains the SavedModel and
        categories.json.
      formats: The names of the formats, from FORMATS.
      images: The images, uint8 [H, W, 3] each. All calibrate int8; the formats are
        checked on the first few.
    Returns:
      The comparison of each format with the checkpoint.
    Raises:
      UserError: The detections of a format differ from the checkpoint's, or there is no
        image to calibrate the int8 of a float network with.
    """
    if not images:
        if "tflite_int8" in formats and module.network.quantization is None:
            raise errors.UserError(
                "tflite_int8 is calibrated on images, and the evaluation split is not "
                "available; give a folder of thirty: --check_images=DIR."
            )
        logging.warning(
            "export | no evaluation images available; checking on synthetic images"
        )
        images = synthetic_images(_NUM_CHECKED)
    checked_images = images[:_NUM_CHECKED]
    expected = checked_detections.detect_with_checkpoint(
        module.network, module.recipe, checked_images
    )
    # ONNX files and OpenVINO's are made of the same model.
    onnx_model_fn = functools.cache(lambda: _to_onnx(module))
    reports = {}
    results: Iterable[Sequence[structures.Detections]]
    for name in formats:
        logging.info("export | writing and checking %s", FORMATS[name].description)
        path = f"{directory}/{FORMATS[name].file}".rstrip("/")
        if name == "tensorrt":
            session = _write_for_tensorrt(module, path)
            results = [
                checked_detections.detect_with_raw_model(
                    session, module.recipe, checked_images
                )
            ]
        else:
            if name != "saved_model":
                with log_levels.suppress_info_logs():
                    contents = _convert(module, name, images, onnx_model_fn)
                for extension, content in contents.items():
                    _save(os.path.splitext(path)[0] + extension, content)
            results = checked_detections.detect_with_artifact(
                path, checked_images, batch_size=module.limits.max_request_images
            )
        reports[name] = parity.check_parity(
            name, results, expected, FORMATS[name].tolerance
        )
    return reports


def _to_onnx(module: server.ServingModule) -> "onnx.ModelProto":
    """Returns the ONNX model of the checkpoint, from images to detections."""
    return onnx_format.convert(
        module.detect_images,
        module.detect_images.input_signature,
        metadata=_metadata(module.recipe),
    )


def _convert(
    module: server.ServingModule,
    name: str,
    images: Sequence[np.ndarray],
    onnx_model_fn: Callable[[], "onnx.ModelProto"],
) -> dict[str, bytes]:
    """Returns the contents of a format's files by extension."""
    if name == "onnx":
        return {".onnx": onnx_model_fn().SerializeToString()}
    if name == "openvino":
        return openvino_format.convert(onnx_model_fn())
    _, *shape = module.input_spec.shape
    kind = name.removeprefix("tflite").lstrip("_") or "float32"
    calibration_images = images[:_NUM_CALIBRATED] if kind == "int8" else []
    content = tflite_format.convert(
        module.predict_inputs,
        module.read_inputs,
        tf.TensorSpec([1, *shape], tf.float32, name="inputs"),
        kind=kind,
        calibration_inputs=[
            transforms.letterbox(image, shape[:2])[0].numpy()
            for image in calibration_images
        ],
    )
    return {".tflite": content}


def _write_for_tensorrt(
    module: server.ServingModule, path: str
) -> "onnxruntime.InferenceSession":
    """Writes the model for TensorRT; returns a session of it without its NMS node."""
    with log_levels.suppress_info_logs():
        raw = onnx_format.convert(
            module.raw, [module.input_spec], metadata=_metadata(module.recipe)
        )
    session = onnx_format.make_session(raw)
    nms_fn = module.recipe.nms_fn
    model = onnx_format.with_efficient_nms(
        raw,
        iou_threshold=nms_fn.iou_threshold,
        score_threshold=nms_fn.score_threshold,
        max_detections=nms_fn.max_detections,
        class_agnostic=not nms_fn.is_per_class,
    )
    _save(path, model.SerializeToString())
    return session


def _metadata(recipe: server.Detector) -> dict[str, str]:
    """Returns the texts that are files in other formats and properties in ONNX."""
    return {category_map.FILE_NAME: category_map.to_json(recipe.categories)}


def synthetic_images(num_images: int) -> list[np.ndarray]:
    """Returns images of colored rectangles on noise, uint8 [480, 640, 3] each.

    Args:
      num_images: The number of images.
    """
    rng = np.random.default_rng(0)
    images = []
    for _ in range(num_images):
        image = rng.integers(0, 80, (480, 640, 3), dtype=np.uint8)
        for top, left in rng.integers(0, 440, (12, 2)):
            height, width = rng.integers(20, 200, 2)
            color = rng.integers(0, 256, 3)
            image[top : top + height, left : left + width] = color
        images.append(image)
    return images


def _save(path: str, content: bytes) -> None:
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)
