"""Prepares a program that does not use the TPU; import it before TensorFlow."""

from retinanet_tpu.startup import checks

checks.run(uses_tpu=False)
