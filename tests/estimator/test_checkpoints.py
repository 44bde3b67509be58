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


def test_pruning_keeps_the_newest(model_dir):
    for step in range(1, 6):
        _save(model_dir, step)
    removed = checkpoints.prune(model_dir, keep=2)
    assert [checkpoints.step_of(path) for path in removed] == [1, 2, 3]
    assert checkpoints.steps(model_dir) == [4, 5]
    assert checkpoints.prune(model_dir, keep=None) == []
    assert checkpoints.prune(model_dir, keep=2) == []


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
