"""The files of an export: each made of one server, and held against the checkpoint."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.data import category_map, transforms
from retinanet_tpu.detections import nms
from retinanet_tpu.estimator import log_levels
from retinanet_tpu.serving import onnx_format, parity, server, tflite_format

_NUM_CHECKED = 4  # Images that each format is checked on.
# Each takes seconds, and from 32 to 128 the AP of blood cells rose by less than noise.
_NUM_CALIBRATED = 32


class Format(NamedTuple):
    """A form of the model.

    Attributes:
      file: its name in the export; "" is the SavedModel itself.
      what: a line for people.
      tolerance: of the check against the checkpoint's own predictions.
    """

    file: str
    what: str
    tolerance: parity.Tolerance


_EXACT = parity.Tolerance(iou=0.99, score=1e-3)
# Others resize an image to the same values but for a pixel in ten thousand.
_CLOSE = parity.Tolerance(iou=0.95, score=5e-3, share=0.97, num_without=2)
FORMATS = {
    "saved_model": Format("", "SavedModel, four signatures", _EXACT),
    "onnx": Format("model.onnx", "ONNX, whole, any batch and image size", _CLOSE),
    "tensorrt": Format("model_tensorrt.onnx", "ONNX for TensorRT's parser", _CLOSE),
    "tflite": Format("model.tflite", "TFLite, float32", _CLOSE),
    "tflite_float16": Format(
        "model_float16.tflite",
        "TFLite, weights in float16",
        parity.Tolerance(iou=0.9, score=0.02, share=0.95, num_without=2),
    ),
    # Eight bits move scores by some hundredths; what passes here is no wreck, and how
    # good it is retinanet-tpu evaluate_export says.
    "tflite_int8": Format(
        "model_int8.tflite",
        "TFLite, convolutions in int8",
        parity.Tolerance(iou=0.5, score=0.1, share=0.7, num_without=2),
    ),
}


def check(formats: Sequence[str], suppress: nms.NMS) -> None:
    """Checks before anything is loaded that formats can be made.

    Args:
      formats: names.
      suppress: what the export ends with.
    Raises:
      UserError: an unknown name, a package that is missing, or soft suppression for
        TensorRT.
    """
    if unknown := [name for name in formats if name not in FORMATS] or not formats:
        raise errors.UserError(
            f"--format is {','.join(formats)!r}; choose of {', '.join(FORMATS)}."
            + (f" There is no {unknown[0]!r}." if formats else "")
        )
    if "tensorrt" in formats:
        _check_efficient_nms(suppress)
    if {"onnx", "tensorrt"} & set(formats):
        onnx_format.check_installed()


def num_images(formats: Sequence[str]) -> int:
    """Returns how many images `write` looks at."""
    return _NUM_CALIBRATED if "tflite_int8" in formats else _NUM_CHECKED


def _check_efficient_nms(suppress):
    """Raises UserError for what TensorRT's own suppression cannot do."""
    if suppress.is_soft:
        raise errors.UserError(
            f"TensorRT's own suppression is hard, but NMS.variant is "
            f"{suppress.variant!r}; set --nms=per_class_hard or --nms=global_hard."
        )
    if suppress.score_threshold < onnx_format.LOWEST_SCORE_THRESHOLD:
        raise errors.UserError(
            f"NMS.score_threshold is {suppress.score_threshold}; under "
            f"{onnx_format.LOWEST_SCORE_THRESHOLD} TensorRT's suppression returns "
            "boxes that were not found: raise it."
        )


def write(
    module: server.ServingModule,
    directory: str,
    *,
    formats: Sequence[str],
    pictures: Sequence[np.ndarray],
) -> dict[str, parity.ParityReport]:
    """Writes all formats but the SavedModel, then checks each.

    Args:
      module: The serving module of the checkpoint.
      directory: of the export; the SavedModel and categories.json are there.
      formats: names of FORMATS.
      images: uint8 [H, W, 3] each; all calibrate int8, the first few are checked on.
    Returns:
      How well each format agrees.
    Raises:
      UserError: a format does not agree with the checkpoint, or there is no image to
        calibrate int8 with.
    """
    if not pictures:
        if "tflite_int8" in formats:
            raise errors.UserError(
                "tflite_int8 is calibrated on images, and the evaluation split is "
                "not at hand; name a folder of thirty: --check_images=DIR."
            )
        logging.warning("export | no images at hand: the check is on made-up ones")
        pictures = _synthetic_images()
    shown = pictures[:_NUM_CHECKED]
    expected = parity.predict(module.network, module.recipe, shown)
    result = {}
    for name in formats:
        logging.info("export | making and checking %s", FORMATS[name].what)
        path = f"{directory}/{FORMATS[name].file}".rstrip("/")
        if name == "tensorrt":
            found = _write_for_tensorrt(module, path, shown)
        else:
            if name != "saved_model":
                with log_levels.suppress_info_logs():
                    content = _converted(module, name, pictures)
                _save(path, content)
            batch_size = module.limits.max_request_images
            found = parity.found_by(path, shown, batch_size=batch_size)
        result[name] = parity.judge(name, found, expected, FORMATS[name].tolerance)
    return result


def _converted(module, name, pictures) -> bytes:
    """Returns the content of a format's file."""
    if name == "onnx":
        model = onnx_format.convert(
            module.detect_images,
            module.detect_images.input_signature,
            metadata=_metadata(module.recipe),
        )
        return model.SerializeToString()
    _, *shape = module.input_spec.shape
    kind = name.removeprefix("tflite").lstrip("_") or "float32"
    shown = pictures[:_NUM_CALIBRATED] if kind == "int8" else []
    inputs = [transforms.letterbox(x, shape[:2])[0].numpy() for x in shown]
    return tflite_format.convert(
        module.predict_inputs,
        module.read_inputs,
        tf.TensorSpec([1, *shape], tf.float32, name="inputs"),
        kind=kind,
        calibration_inputs=inputs,
    )


def _write_for_tensorrt(module, path, pictures):
    """Writes the raw form; yields what its suppression would find in the images.

    TensorRT's own node runs on NVIDIA's devices only. So what goes into it is
    compared, after NMS of ours.
    """
    with log_levels.suppress_info_logs():
        raw = onnx_format.convert(
            module.raw, [module.input_spec], metadata=_metadata(module.recipe)
        )
    session = onnx_format.make_session(raw)
    suppress = module.recipe.nms_fn
    node = onnx_format.with_efficient_nms(
        raw,
        iou_threshold=suppress.iou_threshold,
        score_threshold=suppress.score_threshold,
        max_detections=suppress.max_detections,
        class_agnostic=not suppress.is_per_class,
    )
    _save(path, node.SerializeToString())
    yield parity.suppressed(session, module.recipe, pictures)


def _metadata(recipe):
    """Returns what lies beside other formats, and inside of ONNX."""
    return {category_map.FILE_NAME: category_map.to_json(recipe.categories)}


def _synthetic_images() -> list[np.ndarray]:
    """Returns images of colored rectangles on noise."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(_NUM_CHECKED):
        picture = rng.integers(0, 80, (480, 640, 3), dtype=np.uint8)
        for top, left in rng.integers(0, 440, (12, 2)):
            height, width = rng.integers(20, 200, 2)
            color = rng.integers(0, 256, 3)
            picture[top : top + height, left : left + width] = color
        pictures.append(picture)
    return pictures


def _save(path, content):
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)
