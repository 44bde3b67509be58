"""Prepares a program that leaves the TPU alone; import this before TensorFlow."""

from retinanet_tpu import startup

startup.run(uses_tpu=False)
