"""RetinaNet for TensorFlow 2, trained and exported in the style of TPUEstimator.

Importing the package imports no other module. Import the modules themselves, for
example `from retinanet_tpu.boxes import anchors`.
"""

__version__ = "0.1.0"
