"""RetinaNet on TensorFlow 2, trained, scored and exported the TPUEstimator way.

Importing the package starts nothing; write `from retinanet_tpu.boxes import anchors`.
"""

__version__ = "0.1.0"
