import pytest
import tensorflow as tf

from retinanet_tpu.conversion import shard_progress
from retinanet_tpu.data import record_files


def write(path, sizes):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size in sizes:
            writer.write(b"x" * size)


def test_files_of_a_split_are_returned_in_order(tmp_path):
    names = [record_files.file_name("train", index, 3) for index in range(3)]
    for name in [*reversed(names), "val-00000-of-00001.tfrecord", "train.json"]:
        write(tmp_path / name, [1])
    paths = record_files.find(str(tmp_path), "train")
    assert paths == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize("name", ["run[1]", "run*", "?", "back\\slash"])
def test_a_directory_is_never_a_glob_pattern(tmp_path, name):
    for directory in (tmp_path / name, tmp_path / "run1"):
        directory.mkdir()
        write(directory / record_files.file_name("train", 0, 1), [1])
    path = str(tmp_path / name / record_files.file_name("train", 0, 1))
    assert record_files.find(str(tmp_path / name), "train") == [path]
    (tmp_path / name / "train-00000-of-00001.tfrecord.state").write_text("{}")
    (tmp_path / "run1" / "train-00000-of-00001.tfrecord.state").write_text("{}")
    shard_progress.clear(str(tmp_path / name), "train")
    assert len(list((tmp_path / name).iterdir())) == 1
    assert len(list((tmp_path / "run1").iterdir())) == 2


def test_a_missing_directory_is_an_error_with_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"away in .* {tmp_path}; set DATA"):
        record_files.find("away", "train")


def test_no_match_is_an_error_with_the_pattern(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-\?\?\?\?\?-of-"):
        record_files.find(str(tmp_path), "train")


def test_a_missing_shard_is_an_error_with_its_name(tmp_path):
    for index in (0, 2):
        write(tmp_path / record_files.file_name("train", index, 3), [1])
    with pytest.raises(FileNotFoundError, match="train-00001-of-00003"):
        record_files.find(str(tmp_path), "train")


def test_shards_of_two_conversions_are_an_error(tmp_path):
    write(tmp_path / record_files.file_name("train", 0, 1), [1])
    for index in range(2):
        write(tmp_path / record_files.file_name("train", index, 2), [1])
    with pytest.raises(ValueError, match="of 1 and of 2"):
        record_files.find(str(tmp_path), "train")


@pytest.mark.parametrize("num_hosts", [1, 2, 3, 7])
def test_hosts_partition_the_files(num_hosts):
    files = [f"file{index}" for index in range(7)]
    shares = [record_files.share(files, (host, num_hosts)) for host in range(num_hosts)]
    assert sorted(file for share in shares for file in share) == files
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_host_index_out_of_range_is_an_error():
    with pytest.raises(ValueError, match=r"0\.\.1"):
        record_files.share(["a", "b"], (2, 2))


def test_files_without_a_record_are_an_error(tmp_path):
    write(tmp_path / "empty", [])
    write(tmp_path / "full", [1])
    record_files.check_not_empty([str(tmp_path / "empty"), str(tmp_path / "full")])
    with pytest.raises(ValueError, match="num_shards"):
        record_files.check_not_empty([str(tmp_path / "empty")])


def test_the_mean_record_size_is_estimated_from_the_first_records(tmp_path):
    paths = []
    for number in range(40):
        path = tmp_path / f"{number:02d}.tfrecord"
        write(path, [84] * 8 + [10_000] * 4)  # Each has 16 more bytes of framing.
        paths.append(str(path))
    assert record_files.mean_record_bytes(paths) == 100
    (tmp_path / "empty.tfrecord").write_bytes(b"")
    some = [str(tmp_path / "empty.tfrecord"), paths[0]]
    assert record_files.mean_record_bytes(some) == 100
