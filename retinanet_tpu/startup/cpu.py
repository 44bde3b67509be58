"""Prepares a program that does not use the TPU; import it first."""

from retinanet_tpu.startup import checks, tensorflow_import

checks.run(uses_tpu=False)
tensorflow_import.run()
