import numpy as np
import pytest
import tensorflow as tf

import toy_data
from retinanet_tpu.data import record_images, tf_example


def test_each_image_is_found_by_its_id(tmp_path):
    data_dir = toy_data.write(tmp_path)
    images = record_images.RecordImages(str(data_dir), "val")
    files = sorted(tf.io.gfile.glob(f"{data_dir}/val-*.tfrecord"))
    examples = [tf_example.parse(r) for r in tf.data.TFRecordDataset(files)]
    assert len(examples) > 1
    for example in reversed(examples):
        expected = tf.io.decode_image(example.encoded, 3).numpy()
        np.testing.assert_array_equal(images(int(example.image_id)), expected)
    assert images(10**9) is None


def test_a_split_without_files_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="val-"):
        record_images.RecordImages(str(tmp_path), "val")(1)
