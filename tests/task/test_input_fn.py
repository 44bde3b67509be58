import socket

import numpy as np
import pytest
import tensorflow as tf

import toy_data
from retinanet_tpu.data import record_files
from retinanet_tpu.estimator import spec

pytestmark = pytest.mark.long

BATCH_SIZE = 4  # Of 12 images.


@pytest.fixture
def data_dir(tmp_path):
    return toy_data.write(tmp_path / "data")


def batches(run, first_step):
    """Returns an iterator over the batches of a run that resumes at a step."""
    context = spec.TPUContext(1, 1, 0, first_step)
    params = run.params | {"batch_size": BATCH_SIZE, "context": context}
    return iter(run.train_spec.input_fn(params))


def corrupt_images(data_dir, image_ids):
    """Overwrites the encoded bytes of some images."""
    for path in record_files.find(data_dir, "train"):
        examples = [
            tf.train.Example.FromString(record.numpy())
            for record in tf.data.TFRecordDataset(path)
        ]
        with tf.io.TFRecordWriter(path) as writer:
            for example in examples:
                feature = example.features.feature
                name = feature["image/source_id"].bytes_list.value[0]
                if int(name) in image_ids:
                    feature["image/encoded"].bytes_list.value[0] = b"broken"
                writer.write(example.SerializeToString())


def test_a_resumed_run_skips_records_without_decoding_them(data_dir, tmp_path):
    run = toy_data.make_run(tmp_path / "run", data_dir, *toy_data.TWO_LEVELS)
    straight = batches(run, 0)
    used = next(straight)[0].image_ids.numpy().tolist()
    rest = [next(straight) for _ in range(2)]
    corrupt_images(data_dir, used)
    resumed = batches(run, 1)
    for expected, got in zip(rest, resumed, strict=False):
        tf.nest.map_structure(np.testing.assert_array_equal, expected, got)
    with pytest.raises(tf.errors.InvalidArgumentError):
        for _ in range(3):  # The next epoch decodes them.
            next(resumed)


def test_training_needs_its_data_service_and_evaluation_none(data_dir):
    with socket.create_server(("localhost", 0)) as server:
        address = f"grpc://localhost:{server.getsockname()[1]}"
    run = toy_data.make_run(
        str(data_dir) + "/run", data_dir, f"DATA_SERVICE_ADDRESS = '{address}'"
    )
    with pytest.raises(ValueError, match=f"No dispatcher .* at {address}"):
        batches(run, 0)
    context = spec.TPUContext(1, 1, 0)
    params = run.params | {"batch_size": BATCH_SIZE, "context": context}
    features, _ = next(iter(run.eval_spec.input_fn(params)))
    assert features.image_ids.shape == [BATCH_SIZE]


def test_a_malformed_address_is_an_error_at_the_start(data_dir):
    with pytest.raises(ValueError, match=r"DATA_SERVICE_ADDRESS is 'host:1'"):
        toy_data.make_run(None, data_dir, "DATA_SERVICE_ADDRESS = 'host:1'")


def test_the_memory_of_the_shuffle_is_a_setting(data_dir, tmp_path):
    orders = []
    for name, num_bytes in (("one", 1), ("large", 1 << 30)):
        bindings = (*toy_data.TWO_LEVELS, f"Data.shuffle_bytes = {num_bytes}")
        run = toy_data.make_run(tmp_path / name, data_dir, *bindings)
        data = batches(run, 0)
        seen = [next(data)[0].image_ids.numpy() for _ in range(3)]
        orders.append(np.concatenate(seen).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]
    with pytest.raises(ValueError, match=r"Data\.shuffle_bytes is 0"):
        toy_data.make_run(None, data_dir, "Data.shuffle_bytes = 0")


def test_stretched_images_have_their_own_scale_per_side(data_dir, tmp_path):
    bindings = (*toy_data.TWO_LEVELS, "Recipe.keep_aspect_ratio = False")
    run = toy_data.make_run(
        tmp_path / "run", data_dir, *bindings, "Augmentation.scale_jitter = (1.0, 1.0)"
    )
    features, _ = next(batches(run, 0))
    expected = np.array(run.recipe.image_size) / features.image_sizes.numpy()
    assert len(np.unique(expected[0])) == 2
    np.testing.assert_allclose(features.scales, expected, rtol=1e-6)
