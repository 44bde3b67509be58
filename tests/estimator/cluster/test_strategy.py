import pytest
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.estimator.cluster import strategy


@pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="TensorFlow has a GPU."
)
def test_a_missing_gpu_is_an_error_with_the_files_and_the_extra_to_use():
    with pytest.raises(errors.UserError, match=r"device/xla_gpu.gin.*\[xla-gpu\]"):
        strategy.make_strategy("gpu")


def test_a_missing_tpu_is_an_error_with_the_device_files(monkeypatch):
    def no_tpu(resolver):
        raise tf.errors.NotFoundError(None, None, "TPUs not found\nin the cluster")

    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", no_tpu)
    message = r"no TPU at 'local'.*device/xla_gpu.gin.*error: TPUs not found$"
    with pytest.raises(errors.UserError, match=message):
        strategy.make_strategy("tpu")
