"""Prepares a program that uses the TPU; import it first."""

from retinanet_tpu.startup import checks, tensorflow_import

checks.run(uses_tpu=True)
tensorflow_import.run()
