import pytest
import tensorflow as tf

import toy_data
from retinanet_tpu.planning import host_throughput
from retinanet_tpu.task import configurables

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run():
    toy_data.parse("none", "Augmentation.scale_jitter = (0.8, 1.2)")
    return configurables.make_run(None)


def test_the_rates_are_plausible(run):
    rates = host_throughput.images_per_core_sec(run, num_images=32)
    assert set(rates) == {"train", "eval"}
    # A 640 x 480 JPEG takes milliseconds to decode, on any machine.
    assert all(5 < rate < 50_000 for rate in rates.values())


@pytest.mark.parametrize("is_training", [True, False])
def test_the_batches_are_those_of_the_run(run, tmp_path, is_training):
    host_throughput._write_records(str(tmp_path))
    dataset = host_throughput._dataset(run, str(tmp_path), is_training=is_training)
    features, labels = next(iter(dataset))
    assert features.images.shape[1:] == (*run.recipe.image_size, 3)
    assert labels.boxes_yxyx.shape[1] == run.data.max_boxes
    assert tf.reduce_min(labels.num_boxes) >= 1


def test_the_synthetic_images_are_as_large_as_those_of_coco(tmp_path):
    host_throughput._write_records(str(tmp_path))
    (path,) = tmp_path.iterdir()
    mean_bytes = path.stat().st_size / host_throughput._NUM_IMAGES
    assert 120_000 < mean_bytes < 200_000  # COCO's have 160 kB.
