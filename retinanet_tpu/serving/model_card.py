"""The page that lies beside an export and says what it is and how to call it."""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FILE_NAME = "model_card.md"

_SAVED_MODEL = """\
```python
model = tf.saved_model.load("{directory}")
found = model.signatures["serving_default"](
    image=tf.constant(rgb, tf.float32),  # [H, W, 3] in 0..255, any size
    image_id=tf.constant(7),
)
n = found["valid_detections"]
found["boxes"][:n], found["class_ids"][:n], found["scores"][:n]
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

Input as for TFLite, any batch; outputs as EfficientNMS_TRT has them, boxes (ymin, xmin,
ymax, xmax) in the input's pixels, classes by `index` of categories.json.
"""


class FormatEntry(NamedTuple):
    """A format of an export: its file, what it is, and how its check went."""

    file: str
    what: str
    verdict: str


def text(
    forms: Mapping[str, FormatEntry],
    *,
    class_names: Sequence[str],
    image_size: tuple[int, int],
    nms: str,
    limits: str,
    checkpoint: str,
    scores: Mapping[str, Any] | None,
    config_text: str,
) -> str:
    """Returns the page, in Markdown.

    Args:
      forms: by the name of the format.
      class_names: in the order of their ids.
      image_size: height and width of the network's input, px.
      nms: a line that says which suppression is inside.
      limits: A line with what the SavedModel accepts in one request.
      checkpoint: its path.
      scores: numbers of its evaluation, None if it was not scored.
      config_text: the run's gin settings, "" if they are not known.
    """
    height, width = image_size
    parts = [
        "# RetinaNet",
        f"Checkpoint `{checkpoint}`; images are shown at {height} x {width} px.\n"
        f"Suppression inside: {nms}.",
        f"## {len(class_names)} classes\n\n{', '.join(class_names)}\n\n"
        "Ids and names: `assets.extra/categories.json`. Boxes are (xmin, ymin, xmax, "
        "ymax) in pixels of the image given.",
        "## Scores\n\n" + _scores_table(scores),
        "## Files\n\nEach was held against the checkpoint's own predictions.\n\n"
        + _forms_table(forms),
        f"## Limits\n\nThe SavedModel fails a request beyond {limits}, and one with a "
        "GIF. Change them with `--gin_param` of `python -m retinanet_tpu.export`. The "
        "other formats have no limits of their own.",
    ]
    parts += [
        f"## Calling {form.what}\n\n{call}" for form, call in _calls(forms, image_size)
    ]
    if config_text:
        parts.append(f"## Configuration\n\n```\n{config_text.strip()}\n```")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _scores_table(scores) -> str:
    plain = {
        name: value
        for name, value in (scores or {}).items()
        if isinstance(value, numbers.Real) and name not in ("global_step", "loss")
    }
    if not plain:
        return "Not scored."
    rows = [f"| {name} | {value:.4g} |" for name, value in plain.items()]
    return "\n".join(["| metric | |", "|---|---|", *rows])


def _forms_table(forms) -> str:
    rows = [
        f"| {form.what} | `{form.file or 'saved_model.pb'}` | {form.verdict} |"
        for form in forms.values()
    ]
    return "\n".join(["| format | file | check |", "|---|---|---|", *rows])


def _calls(forms, image_size):
    """Yields each format with a sample call; of the TFLite files the first only."""
    height, width = image_size
    is_told = False
    for name, form in forms.items():
        if name.startswith("tflite") and is_told:
            continue
        is_told = is_told or name.startswith("tflite")
        sample = {
            "saved_model": _SAVED_MODEL,
            "onnx": _ONNX,
            "tensorrt": _TENSORRT,
        }.get(name, _TFLITE)
        yield (
            form,
            sample.format(
                directory="DIRECTORY", file=form.file, height=height, width=width
            ),
        )
