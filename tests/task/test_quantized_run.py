"""A short quantized run after a float run, on both engines, and its int8 export."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import toy_data
from retinanet_tpu import errors
from retinanet_tpu.estimator import gin_files
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.task import configurables, serving_fn

pytestmark = pytest.mark.slow

RANGES = "quantization/moving_ranges"
SETTINGS = (
    *toy_data.TWO_LEVELS,
    *toy_data.SGD,
    "WeightUpdate.averaging_decay = 0.9",
    "FROZEN = ('backbone/stem',)",
)
QUANTIZED = "RetinaNet.quantize_fn = @FakeQuantization"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def float_run(data_dir, tmp_path_factory):
    """Returns the model_dir of a float run."""
    model_dir = tmp_path_factory.mktemp("float")
    toy_data.train(toy_data.make_run(model_dir, data_dir, *SETTINGS[:-1]), 2)
    return model_dir


@pytest.fixture(scope="module")
def make(data_dir, float_run):
    """Returns a function that makes the quantized run."""

    def make(model_dir, **kwargs):
        warm_start = f"WARM_START = '{float_run}'"
        settings = (*SETTINGS, QUANTIZED, warm_start)
        return toy_data.make_run(model_dir, data_dir, *settings, **kwargs)

    return make


@pytest.fixture(scope="module")
def trained(make, tmp_path_factory):
    """Returns the quantized run and its checkpoint after four steps."""
    run = make(tmp_path_factory.mktemp("int8"))
    return run, toy_data.train(run, 4)


def test_the_checkpoint_contains_the_ranges_and_their_averages(trained):
    tensors = checkpoints.read(trained[1])
    ranges = tensors[f"weights/{RANGES}"]
    assert np.all(ranges[:, 0] <= 0)
    assert np.all(ranges[:, 1] >= 0)
    assert np.mean(ranges[:, 1] > ranges[:, 0]) == 1
    assert np.mean(tensors[f"averages/{RANGES}"][:, 1] > 0) > 0.5


def test_moving_statistics_are_those_of_the_float_run(trained, float_run):
    got = checkpoints.read(trained[1], "weights/")
    expected = checkpoints.read(checkpoints.latest(str(float_run)), "averages/")
    statistics = [path for path in got if "norm" in path and "/moving_" in path]
    assert statistics
    for path in statistics:
        np.testing.assert_array_equal(got[path], expected[path])


def test_a_resumed_run_is_the_same_run(make, trained, tmp_path):
    toy_data.train(make(tmp_path), 2)
    got = checkpoints.read(toy_data.train(make(tmp_path), 4))
    for name, value in checkpoints.read(trained[1]).items():
        np.testing.assert_allclose(got[name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("engine", ["tf.distribute", "pjrt"])
def test_two_replicas_train_on_both_engines(make, trained, tmp_path, engine):
    if engine == "pjrt":
        pytest.importorskip("jax")
    got = checkpoints.read(
        toy_data.train(make(tmp_path, num_replicas=2, engine=engine), 4)
    )
    for name, value in checkpoints.read(trained[1], "weights/").items():
        value = value.astype(np.float64)
        difference = np.abs(got[f"weights/{name}"] - value).max()
        # A range is the mean of those of both replicas. The kernels follow it.
        tolerance = 0.5 if name == RANGES else 0.05
        assert difference <= tolerance * np.abs(value).max() + 1e-3, name


def test_int8_is_exported_and_agrees_with_the_checkpoint(trained, tmp_path):
    run, path = trained
    images = np.random.default_rng(0).integers(0, 256, [2, 64, 64, 3], np.uint8)
    # No image calibrates.
    export = functools.partial(
        serving_fn.serving_fn, formats=["tflite_int8"], images=list(images)
    )
    directory = run.estimator.export_saved_model(
        str(tmp_path), export, checkpoint_path=path
    )
    assert tf.io.gfile.exists(f"{directory}/model_int8.tflite")


def test_the_gin_file_quantizes_the_run_before_it(data_dir):
    files = ("quickstart.gin", "device/xla_tpu.gin", "model/int8.gin")
    files = [str(toy_data.GIN_CONFIGS / name) for name in files]
    text = gin_files.parse(
        files, [f"DATA_DIR = '{data_dir}'"], known=configurables.CONFIGURABLES
    )
    assert "RetinaNet.quantize_fn = @FakeQuantization" in text
    assert "COMPUTE_DTYPE = 'float32'" in text


def test_other_dtypes_are_an_error(data_dir):
    run = toy_data.make_run(None, data_dir, QUANTIZED, "COMPUTE_DTYPE = 'bfloat16'")
    with pytest.raises(errors.UserError, match="requires 'float32'"):
        run.make_network()
