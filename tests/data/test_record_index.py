import pytest
import tensorflow as tf

from retinanet_tpu.data import record_files, record_index


def write(folder, sizes_of_files, split="train"):
    """Writes files of records; returns their paths."""
    paths = []
    for index, sizes in enumerate(sizes_of_files):
        name = record_files.file_name(split, index, len(sizes_of_files))
        paths.append(str(folder / name))
        with tf.io.TFRecordWriter(paths[-1]) as writer:
            for size in sizes:
                writer.write(b"x" * size)
    return paths


def lists(sizes_of_files):
    return [sizes.tolist() for sizes in sizes_of_files]


def test_the_sizes_add_up_to_the_files_without_an_index(tmp_path):
    paths = write(tmp_path, [[], [0], [5, 70_000, 0, 3]])
    expected = [[], [16], [21, 70_016, 16, 19]]
    assert lists(record_index.record_sizes(paths)) == expected
    assert record_index.count_records(paths) == [0, 1, 4]


def test_an_index_replaces_the_scan(tmp_path):
    paths = write(tmp_path, [[10, 20], [30]])
    # Other sizes of the same sum show which source was read.
    index = {paths[0]: [20, 42], paths[1]: [46]}
    record_index.write(index)
    assert record_index.path_of(paths[0]) == str(tmp_path / "train.index.json")
    assert lists(record_index.record_sizes(paths)) == [[20, 42], [46]]


def test_files_that_differ_from_the_index_are_scanned(tmp_path):
    paths = write(tmp_path, [[10, 20], [30]])
    record_index.write({paths[0]: [26, 36], "other": [1]})
    write(tmp_path, [[11, 20], [30]])
    assert lists(record_index.record_sizes(paths)) == [[27, 36], [46]]


@pytest.mark.parametrize(
    "content",
    [
        '{"train-0',
        "[]",
        '{"train-00000-of-00001.tfrecord": null}',
        '{"train-00000-of-00001.tfrecord": 26}',
        '{"train-00000-of-00001.tfrecord": [[20, 6]]}',
        '{"train-00000-of-00001.tfrecord": ["a"]}',
        '{"train-00000-of-00001.tfrecord": [1e99]}',
    ],
)
def test_a_corrupt_index_is_not_used(tmp_path, caplog, content):
    paths = write(tmp_path, [[10]])
    (tmp_path / "train.index.json").write_text(content)
    assert lists(record_index.record_sizes(paths)) == [[26]]
    assert "train.index.json is not used" in caplog.text


def test_only_files_without_sizes_in_the_index_are_reported(tmp_path, caplog):
    caplog.set_level("INFO")
    paths = write(tmp_path, [[10], [], [30]])
    record_index.write({paths[0]: [26]})
    assert lists(record_index.record_sizes(paths)) == [[26], [], [46]]
    assert "train.index.json does not describe 1 of 3 files" in caplog.text


def test_an_index_can_be_removed_twice(tmp_path):
    paths = write(tmp_path, [[10]])
    record_index.write({paths[0]: [26]})
    record_index.remove(paths[0])
    record_index.remove(paths[0])
    assert not (tmp_path / "train.index.json").exists()


@pytest.mark.parametrize("cut", [1, 5, 16, 17, 20])
def test_a_truncated_file_is_an_error_with_its_record(tmp_path, cut):
    paths = write(tmp_path, [[10, 5]])
    record_index.write({paths[0]: [26, 21]})
    content = (tmp_path / "train-00000-of-00001.tfrecord").read_bytes()
    (tmp_path / "train-00000-of-00001.tfrecord").write_bytes(content[:-cut])
    with pytest.raises(ValueError, match=r"train-00000.*truncated.*record 1\."):
        record_index.record_sizes(paths)
