import os
import threading

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.estimator.model_dir import checkpoints, files

NAMES = (
    "plain",
    "a b,c=0.1",
    "run*",
    "run?",
    "open[",
    "close]",
    "close]open[",
    "{a,b}",
    "ä\n'",
    "run[lr=0.1]",
    "[a-z]",
    "x[!y]z",
    "x[]]",
    "two[/]levels",
    "back\\slash",
    "\\[escaped\\]",
)


@pytest.fixture(params=["local", "ram"])
def directory(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_paths_that_tensorflow_cannot_read_are_refused(tmp_path, name):
    path = f"{tmp_path}/{name}"
    os.makedirs(path)
    tensors = {"global_step": np.int64(3)}
    saved = checkpoints.save(path, 3, tensors)
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(saved)
        assert reader.get_tensor("global_step") == 3
    except Exception:
        with pytest.raises(errors.UserError, match=r"--model_dir is .* as a pattern"):
            files.check_path(path, "--model_dir")
    else:
        files.check_path(path, "--model_dir")
        assert checkpoints.latest_valid(path) == saved


def test_concurrent_writers_of_one_file_do_not_mix_their_texts(directory):
    tf.io.gfile.makedirs(directory)
    texts = [f"{i}" * 1000 for i in range(8)]
    threads = [
        threading.Thread(target=files.write_whole, args=(f"{directory}/x", text))
        for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.read_if_there(f"{directory}/x").decode() in texts
    assert files.list_directory(directory) == ["x"]


def test_a_failed_write_leaves_no_file(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(tf.errors.OpError):
        files.write_whole(f"{tmp_path}/x", "text")
    assert os.listdir(tmp_path) == ["x"]


def test_only_temporary_files_of_killed_writers_are_removed(tmp_path):
    others = ["x", "x.tmp", "x.0123456789abcdef.tmp", "0123456789ab.tmp"]
    for name in [*others, "x.0123456789ab.tmp"]:
        (tmp_path / name).write_text("")
    files.remove_temporaries(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(others)


def test_a_name_that_is_not_utf8_does_not_hide_the_others(tmp_path):
    (tmp_path / "x").write_text("")
    open(os.fsencode(tmp_path) + b"/\xff\xfe", "w").close()
    assert files.list_directory(str(tmp_path)) == ["x"]
    assert files.list_directory(f"{tmp_path}/absent") == []
