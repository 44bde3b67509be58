"""Prepares a program that computes on the TPU; import this before TensorFlow."""

from retinanet_tpu.startup import checks

checks.run(uses_tpu=True)
