"""RetinaNet for TensorFlow 2, trained and exported in the style of TPUEstimator.

  model = retinanet_tpu.load("run1/export/latest")
  detections = model("photo.jpg")

Importing the package imports no other module. Import the modules themselves, for
example `from retinanet_tpu.boxes import anchors`.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # Type checkers treat the name as typing.TYPE_CHECKING.
if TYPE_CHECKING:
    import os

    from retinanet_tpu.detector import Detector


def load(path: "str | os.PathLike[str]") -> "Detector":
    """Loads an export of any format, or a checkpoint; see `detector.load`.

    Args:
      path: A SavedModel, a .onnx, .tflite or .xml file, an export or a folder of
        exports; or the directory of a run, or a checkpoint of it.
    Raises:
      UserError: The path contains no model, or the model cannot be loaded.
    """
    from retinanet_tpu import detector

    return detector.load(path)
