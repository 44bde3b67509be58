"""RetinaNet on TensorFlow 2: training, evaluation and export in TPUEstimator style.

Importing the package imports no other module. Import the modules themselves, for
example `from retinanet_tpu.boxes import anchors`.
"""

__version__ = "0.1.0"
