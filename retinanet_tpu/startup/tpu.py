"""Prepares a program that uses the TPU; import it before TensorFlow."""

from retinanet_tpu.startup import checks

checks.run(uses_tpu=True)
