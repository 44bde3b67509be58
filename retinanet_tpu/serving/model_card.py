"""Writes the model card of an export: its classes, scores, files and sample calls."""

import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

FILE_NAME = "model_card.md"

_SAVED_MODEL = """\
```python
model = tf.saved_model.load("{directory}")
detections = model.signatures["serving_default"](
    image=tf.constant(rgb, tf.float32),  # [H, W, 3] in 0..255, any size
    image_id=tf.constant(7),
)
n = detections["valid_detections"]
detections["boxes"][:n], detections["class_ids"][:n], detections["scores"][:n]
```

For batches `images` takes uint8 [B, H, W, 3], `image_bytes` string [B] of JPEG or PNG
files, `tf_example` string [B] of examples with `image/encoded`. Over TensorFlow
Serving's REST API:

```
image=$(base64 -w0 a.jpg)
curl http://localhost:8501/v1/models/retinanet:predict -d \\
  '{{"signature_name": "image_bytes", "instances": [{{"b64": "'$image'"}}]}}'
```
"""
_ONNX = """\
```python
session = onnxruntime.InferenceSession("{directory}/model.onnx")
outputs = ["boxes_xyxy", "scores", "class_ids", "valid_detections"]
session.run(outputs, {{"images": images}})  # uint8 [B, H, W, 3], any B, H and W
```
"""
_OPENVINO = """\
```python
model = openvino.Core().compile_model("{directory}/{file}", "CPU")
model({{"images": images}})["boxes_xyxy"]  # uint8 [B, H, W, 3], any B, H and W
```
"""
_TFLITE = """\
```python
run = tf.lite.Interpreter("{directory}/{file}").get_signature_runner()
run(inputs=inputs)  # float32 [1, {height}, {width}, 3]: resized, aspect kept, top left,
                    # padded with (124, 116, 104); boxes are in its pixels
```
"""
_TENSORRT = """\
```
python tools/deploy/tensorrt/build_engine.py \\
  --onnx={directory}/{file} --output=model.engine
```

The input is that of TFLite, with any batch. The outputs are those of EfficientNMS_TRT:
boxes (ymin, xmin, ymax, xmax) in the input's pixels, classes by `index` of
categories.json.
"""


class FormatEntry(NamedTuple):
    """The file of an export, its description, and the result of its check."""

    file: str
    description: str
    check_result: str


def text(
    entries: Mapping[str, FormatEntry],
    *,
    class_names: Sequence[str],
    image_size: tuple[int, int],
    nms: str,
    limits: str,
    checkpoint: str,
    scores: Mapping[str, Any] | None,
    config_text: str,
) -> str:
    """Returns the model card, in Markdown.

    Args:
      entries: The formats by name.
      class_names: The names of the classes, in the order of their ids.
      image_size: The height and width of the network's input, px.
      nms: A line that describes the non-maximum suppression of the export.
      limits: A line with the request limits of the SavedModel.
      checkpoint: The path of the checkpoint.
      scores: The metrics of the checkpoint's evaluation, None without an evaluation.
      config_text: The run's gin settings, "" if they are unknown.
    """
    height, width = image_size
    parts = [
        "# RetinaNet",
        f"Checkpoint `{checkpoint}`; the network's input is {height} x {width} px.\n"
        f"Non-maximum suppression: {nms}.",
        f"## {len(class_names)} classes\n\n{', '.join(class_names)}\n\n"
        "Ids and names: `assets.extra/categories.json`. Boxes are (xmin, ymin, xmax, "
        "ymax) in pixels of the input image.",
        "## Scores\n\n" + _scores_table(scores),
        "## Files\n\nEach was compared with the checkpoint's own detections.\n\n"
        + _files_table(entries),
        f"## Limits\n\nThe SavedModel fails a request beyond {limits}, and one with a "
        "GIF. Change them with `--gin_param` of `python -m retinanet_tpu.export`. The "
        "other formats have no limits of their own.",
    ]
    parts += [
        f"## Calling {entry.description}\n\n{call}"
        for entry, call in _sample_calls(entries, image_size)
    ]
    if config_text:
        parts.append(f"## Configuration\n\n```\n{config_text.strip()}\n```")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _scores_table(scores: Mapping[str, Any] | None) -> str:
    metrics = {
        name: float(value)
        for name, value in (scores or {}).items()
        if isinstance(value, numbers.Real) and name not in ("global_step", "loss")
    }
    if not metrics:
        return "Not evaluated."
    rows = [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    return "\n".join(["| metric | |", "|---|---|", *rows])


def _files_table(entries: Mapping[str, FormatEntry]) -> str:
    rows = [
        f"| {x.description} | `{x.file or 'saved_model.pb'}` | {x.check_result} |"
        for x in entries.values()
    ]
    return "\n".join(["| format | file | check |", "|---|---|---|", *rows])


def _sample_calls(
    entries: Mapping[str, FormatEntry], image_size: tuple[int, int]
) -> Iterator[tuple[FormatEntry, str]]:
    """Yields each format with a sample call, but only the first TFLite file."""
    height, width = image_size
    has_tflite_call = False
    for name, entry in entries.items():
        is_tflite = name.startswith("tflite")
        if is_tflite and has_tflite_call:
            continue
        has_tflite_call = has_tflite_call or is_tflite
        sample = {
            "saved_model": _SAVED_MODEL,
            "onnx": _ONNX,
            "openvino": _OPENVINO,
            "tensorrt": _TENSORRT,
        }.get(name, _TFLITE)
        yield (
            entry,
            sample.format(
                directory="DIRECTORY", file=entry.file, height=height, width=width
            ),
        )
