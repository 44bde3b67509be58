import re

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.estimator import checkpoints


@pytest.fixture(params=["local", "ram"])
def model_dir(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"


def _save(model_dir, step):
    tensors = {
        "weights/a/b": np.full([2, 3], step, np.float32),
        "weights/c": np.int64(1),
    }
    return checkpoints.save(model_dir, step, tensors | {"slots/x": np.float32(2)})


def test_what_is_saved_is_read(model_dir):
    path = _save(model_dir, 7)
    weights = checkpoints.read(path, "weights/")
    assert list(weights) == ["a/b", "c"]
    np.testing.assert_array_equal(weights["a/b"], np.full([2, 3], 7))
    assert weights["c"].dtype == np.int64


def test_the_latest_is_the_highest_step_not_the_newest_file(model_dir):
    for step in (20, 100, 9):
        _save(model_dir, step)
    assert checkpoints.steps(model_dir) == [9, 20, 100]
    assert checkpoints.latest(model_dir).endswith("model.ckpt-100")


def test_a_checkpoint_without_a_data_shard_does_not_count(model_dir):
    _save(model_dir, 1)
    path = _save(model_dir, 2)
    tf.io.gfile.remove(f"{path}.data-00000-of-00001")
    assert checkpoints.steps(model_dir) == [1]
    with pytest.raises(FileNotFoundError, match="No complete checkpoint"):
        checkpoints.read(path)


def test_what_is_deleted_is_neither_there_nor_named(model_dir):
    for step in range(1, 6):
        _save(model_dir, step)
    checkpoints.delete(model_dir, [1, 3, 4])
    assert checkpoints.steps(model_dir) == [2, 5]
    with tf.io.gfile.GFile(f"{model_dir}/checkpoint") as file:
        assert re.findall(r"ckpt-(\d+)", file.read()) == ["5", "2", "5"]
    assert len(tf.io.gfile.listdir(model_dir)) == 5


def test_the_newest_sound_checkpoint_is_the_one_that_can_be_read(model_dir):
    paths = [_save(model_dir, step) for step in (1, 2, 3)]
    _cut_short(f"{paths[2]}.data-00000-of-00001")
    _cut_short(f"{paths[1]}.index")
    assert checkpoints.latest(model_dir) == paths[2]
    assert checkpoints.latest_sound(model_dir) == paths[0]
    checkpoints.delete(model_dir, [1])
    assert checkpoints.latest_sound(model_dir) is None


def test_what_a_killed_save_left_is_removed(model_dir):
    path = _save(model_dir, 3)
    for part in (f"{path}.index", f"{model_dir}/model.ckpt-4.data-00000-of-00001"):
        with tf.io.gfile.GFile(f"{part}.tempstate123456789", "w") as file:
            file.write("half")
    assert len(checkpoints.remove_remains(model_dir)) == 2
    assert checkpoints.remove_remains(model_dir) == []
    assert checkpoints.latest_sound(model_dir) == path


def _cut_short(path):
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    tf.io.gfile.remove(path)  # On ram:// "w" would append.
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content[: len(content) // 2])


def test_tensorflow_finds_the_latest_by_the_state_file(tmp_path):
    _save(str(tmp_path), 3)
    path = _save(str(tmp_path), 12)
    assert tf.train.latest_checkpoint(str(tmp_path)) == path


def test_an_empty_or_absent_directory_has_no_checkpoint(tmp_path):
    assert checkpoints.latest(str(tmp_path)) is None
    assert checkpoints.latest(str(tmp_path / "absent")) is None


def test_a_name_without_a_step_is_refused():
    with pytest.raises(ValueError, match=r"model\.ckpt-1000"):
        checkpoints.step_of("dir/model.ckpt")
