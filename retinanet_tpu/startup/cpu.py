"""Prepares a program that leaves the TPU alone; import this before TensorFlow."""

from retinanet_tpu.startup import checks

checks.run(uses_tpu=False)
