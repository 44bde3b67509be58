import os
import re

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.estimator.model_dir import checkpoints


@pytest.fixture(params=["local", "ram"])
def model_dir(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"


def _save(model_dir, step):
    tensors = {
        "weights/a/b": np.full([2, 3], step, np.float32),
        "weights/c": np.int64(1),
    }
    return checkpoints.save(model_dir, step, tensors | {"slots/x": np.float32(2)})


def test_saved_tensors_are_read_unchanged(model_dir):
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


def test_a_checkpoint_without_a_data_shard_is_incomplete(model_dir):
    _save(model_dir, 1)
    path = _save(model_dir, 2)
    tf.io.gfile.remove(f"{path}.data-00000-of-00001")
    assert checkpoints.steps(model_dir) == [1]
    with pytest.raises(FileNotFoundError, match="No complete checkpoint"):
        checkpoints.read(path)


def test_deleted_checkpoints_leave_no_file_and_no_entry(model_dir):
    for step in range(1, 6):
        _save(model_dir, step)
    checkpoints.delete(model_dir, [1, 3, 4])
    assert checkpoints.steps(model_dir) == [2, 5]
    with tf.io.gfile.GFile(f"{model_dir}/checkpoint") as file:
        assert re.findall(r"ckpt-(\d+)", file.read()) == ["5", "2", "5"]
    assert len(tf.io.gfile.listdir(model_dir)) == 5


def test_the_newest_valid_checkpoint_is_the_newest_readable_one(model_dir):
    paths = [_save(model_dir, step) for step in (1, 2, 3)]
    _truncate(f"{paths[2]}.data-00000-of-00001")
    _truncate(f"{paths[1]}.index")
    assert checkpoints.latest(model_dir) == paths[2]
    assert checkpoints.latest_valid(model_dir) == paths[0]
    checkpoints.delete(model_dir, [1])
    assert checkpoints.latest_valid(model_dir) is None


def test_files_of_a_killed_save_are_removed(model_dir):
    path = _save(model_dir, 3)
    for part in (f"{path}.index", f"{model_dir}/model.ckpt-4.data-00000-of-00001"):
        with tf.io.gfile.GFile(f"{part}.tempstate123456789", "w") as file:
            file.write("half")
    assert len(checkpoints.delete_incomplete(model_dir)) == 2
    assert checkpoints.delete_incomplete(model_dir) == []
    assert checkpoints.latest_valid(model_dir) == path


def _truncate(path):
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    tf.io.gfile.remove(path)  # On ram:// "w" would append.
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content[: len(content) // 2])


@pytest.mark.parametrize("name", ["run*", "run?", "run[1]", "run{1,2}"])
def test_files_of_another_run_are_not_changed(tmp_path, name):
    sibling, own = str(tmp_path / "run1"), str(tmp_path / name)
    for model_dir in (sibling, own):
        os.makedirs(model_dir)
        for step in (3, 4):
            _save(model_dir, step)
    part = "model.ckpt-5.index.tempstate123456789"
    (tmp_path / "run1" / part).write_text("half")
    before = sorted(os.listdir(sibling))
    checkpoints.delete(own, [3])
    assert checkpoints.delete_incomplete(own) == []
    assert checkpoints.steps(own) == [4]
    assert sorted(os.listdir(own)) == [
        "checkpoint",
        "model.ckpt-4.data-00000-of-00001",
        "model.ckpt-4.index",
    ]
    assert sorted(os.listdir(sibling)) == before


def test_a_path_that_is_a_pattern_is_an_error_and_not_corrupt(tmp_path):
    os.makedirs(tmp_path / "run[1]")
    path = _save(str(tmp_path / "run[1]"), 3)
    with pytest.raises(errors.UserError, match=r"treats '\[1\]' as a pattern"):
        checkpoints.read(path)
    with pytest.raises(errors.UserError, match="as a pattern"):
        checkpoints.latest_valid(str(tmp_path / "run[1]"))


def test_other_file_names_are_ignored(tmp_path):
    path = _save(str(tmp_path), 3)
    names = [
        "model.ckpt-x.index",
        "model.ckpt-².index",
        "model.ckpt-007.index",
        "model.ckpt-9.index",
        "model.ckpt-9.data-00005-of-00001",
        "model.ckpt-9.data-00000-of-99999",
        "model.ckpt-3.data-00000-of-00001.bak",
        "model.ckpt-3.backup",
    ]
    for name in names:
        (tmp_path / name).write_text("other")
    (tmp_path / "model.ckpt-8.index").mkdir()
    (tmp_path / "checkpoint").write_bytes(b"\xff\xfe\0")
    open(os.fsencode(tmp_path) + b"/model.ckpt-\xff.index", "w").close()
    assert checkpoints.steps(str(tmp_path)) == [3]
    assert checkpoints.latest_valid(str(tmp_path)) == path
    checkpoints.delete(str(tmp_path), [3])
    remaining = os.listdir(os.fsencode(tmp_path))
    kept = {*map(os.fsencode, names), b"model.ckpt-8.index", b"model.ckpt-\xff.index"}
    assert set(remaining) == kept


@pytest.mark.parametrize(
    ("deleted", "message"),
    [
        (["model.ckpt-7.index"], r"lacks model\.ckpt-7, which its file `checkpoint`"),
        (
            ["model.ckpt-7.data-00000-of-00001"],
            r"contains model\.ckpt-7\.index, but no",
        ),
        (["model.ckpt-7.index", "model.ckpt-7.data-00000-of-00001"], "lacks model"),
        (
            ["checkpoint", "model.ckpt-7.index", "model.ckpt-7.data-00000-of-00001"],
            "lacks the checkpoint of step 7",
        ),
    ],
)
def test_a_lost_checkpoint_is_an_error(model_dir, deleted, message):
    checkpoints.check_nothing_lost(model_dir)
    _save(model_dir, 7)
    for name in deleted:
        tf.io.gfile.remove(f"{model_dir}/{name}")
    with pytest.raises(errors.UserError, match=message):
        checkpoints.check_nothing_lost(model_dir, 7)


def test_data_of_a_killed_first_save_are_not_a_lost_checkpoint(model_dir):
    tf.io.gfile.makedirs(model_dir)
    with tf.io.gfile.GFile(f"{model_dir}/model.ckpt-4.data-00000-of-00001", "w"):
        pass
    checkpoints.check_nothing_lost(model_dir)


def test_tensorflow_finds_the_latest_by_the_state_file(tmp_path):
    _save(str(tmp_path), 3)
    path = _save(str(tmp_path), 12)
    assert tf.train.latest_checkpoint(str(tmp_path)) == path


def test_an_empty_or_absent_directory_has_no_checkpoint(tmp_path):
    assert checkpoints.latest(str(tmp_path)) is None
    assert checkpoints.latest(str(tmp_path / "absent")) is None


def test_a_name_without_a_step_is_an_error():
    with pytest.raises(ValueError, match=r"model\.ckpt-1000"):
        checkpoints.step_of("dir/model.ckpt")
