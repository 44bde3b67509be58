"""Prepares a program that computes on the TPU; import this before TensorFlow."""

from retinanet_tpu import startup

startup.run(uses_tpu=True)
