import itertools
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.data import record_files, record_index, record_order

pytestmark = pytest.mark.long

NUM_RECORDS, NUM_CLASSES = 2000, 10  # Sorted by class: number // 200.
READERS = {
    "here": record_order.read_records_in_order,
    "service": record_order.read_records_for_data_service,
}


def write(folder, records_of_files):
    """Writes files of numbers as records; returns their paths."""
    count = len(records_of_files)
    for index, numbers in enumerate(records_of_files):
        path = folder / record_files.file_name("train", index, count)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for number in numbers:
                writer.write(b"%4d" % number)
    return record_files.find(str(folder), "train")


def write_in_turn(folder, num_files):
    """Writes sorted records to the files in turn, as many converters do."""
    return write(folder, [range(i, NUM_RECORDS, num_files) for i in range(num_files)])


def read(files, count, *, read_fn=record_order.read_records_in_order, **options):
    """Returns the numbers of the first records that a host reads."""
    options = record_order.ReadOptions(**options)
    shares = record_order.files_of_host(files, "train", options.shard)
    records = read_fn(shares, options).map(
        lambda _, record: tf.strings.to_number(record, tf.int64)
    )
    return np.array(list(records.take(count).as_numpy_iterator()))


def classes_of_batches(numbers, batch_size=64):
    classes = numbers * NUM_CLASSES // NUM_RECORDS
    whole = len(classes) // batch_size * batch_size
    return [len(set(batch)) for batch in classes[:whole].reshape(-1, batch_size)]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("num_files", [16, 20, 64])
def test_sorted_records_written_in_turn_are_mixed(tmp_path, num_files, reader):
    files = write(
        tmp_path, [range(i, NUM_RECORDS, num_files) for i in range(num_files)]
    )
    # Too small a buffer to mix classes by itself: a class has 200 records.
    numbers = read(files, 2 * NUM_RECORDS, read_fn=READERS[reader], shuffle_buffer=100)
    num_classes = classes_of_batches(numbers)
    assert np.median(num_classes) >= 9 and min(num_classes) >= 7


@pytest.mark.parametrize("num_files", [4, 16, 64])
def test_epochs_have_different_orders(tmp_path, num_files):
    files = write(
        tmp_path, [range(i, NUM_RECORDS, num_files) for i in range(num_files)]
    )
    numbers = read(files, 2 * NUM_RECORDS, shuffle_buffer=10).reshape(2, NUM_RECORDS)
    positions = np.argsort(numbers, axis=1)
    assert abs(np.corrcoef(positions)[0, 1]) < 0.5


@pytest.mark.parametrize(
    ("per_file", "sizes"),
    [
        ([10], [10]),
        ([9, 0, 1], [10]),
        ([5, 0, 0, 0, 4], [9]),
        ([40, *[1] * 20], [60]),
        ([4, 1, 2], [4, 1, 2]),
        # The files left over are divided record by record.
        ([4, 1, 2, 3], [5, 2, 3]),
        ([4, 1, 2, 5, 1], [4 + 2 + 1, 1 + 2, 2 + 1]),
        ([3] * 17, [15 + 2, 15 + 2, 15 + 2]),
    ],
)
def test_an_epoch_of_all_hosts_has_every_record_once(tmp_path, per_file, sizes):
    numbers = iter(range(sum(per_file)))
    files = write(tmp_path, [list(itertools.islice(numbers, n)) for n in per_file])
    epochs = [[], []]
    for host, size in enumerate(sizes):
        both_epochs = read(files, 2 * size, shard=(host, len(sizes)))
        for epoch, part in zip(epochs, np.split(both_epochs, 2), strict=True):
            epoch += part.tolist()
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(sum(per_file)))


@pytest.mark.parametrize("num_hosts", [1, 3])
def test_each_position_of_a_service_is_one_whole_share_of_a_file(tmp_path, num_hosts):
    files = write(tmp_path, [range(10 * i, 10 * i + 6) for i in range(7)])
    whole = {frozenset(range(10 * i, 10 * i + 6)) for i in range(7)}
    complete = set()
    for host in range(num_hosts):
        options = record_order.ReadOptions(shard=(host, num_hosts))
        shares = record_order.files_of_host(files, "train", options.shard)
        records = record_order.read_records_for_data_service(shares, options)
        groups = {}
        for number, record in records.take(200):
            groups.setdefault(int(number) >> 32, []).append(int(record.numpy()))
        epoch = [groups[position] for position in sorted(groups)[: len(shares)]]
        complete |= {frozenset(group) for group in epoch if len(group) == 6}
        # The 7th file's records go to three hosts.
        records = list(itertools.chain.from_iterable(epoch))
        assert len(records) == len(set(records)) == 42 // num_hosts
    assert complete == (whole if num_hosts == 1 else whole - {frozenset(range(60, 66))})


def test_any_number_of_hosts_reads_each_record_equally_often(tmp_path, caplog):
    files = write(tmp_path, [range(i, 600, 5) for i in range(5)])
    sizes = [len(set(read(files, 600, shard=(host, 2)))) for host in range(2)]
    assert sizes == [300, 300]
    assert "5 train files are not a multiple of 2 hosts" in caplog.text
    assert "--num_shards=6" in caplog.text


@pytest.mark.parametrize("num_hosts", [1, 2])
def test_a_resumed_run_continues_the_uninterrupted_run(tmp_path, num_hosts):
    files = write(tmp_path, [range(i, 60, 19) for i in range(19)])
    options = {"shard": (num_hosts - 1, num_hosts), "shuffle_buffer": 5}
    straight = read(files, 150, **options)
    for used in (1, 7, 29, 60, 61, 133):
        resumed = read(files, 150 - used, first_example=used, **options)
        np.testing.assert_array_equal(resumed, straight[used:])


@pytest.mark.parametrize(
    ("per_file", "host"), [([40, 3, 0, *[25] * 17], (0, 1)), ([30] * 5, (2, 3))]
)
@pytest.mark.parametrize("used_fraction", [0.3, 0.9])
def test_a_resumed_run_does_not_read_used_records(
    tmp_path, per_file, host, used_fraction
):
    numbers = iter(range(sum(per_file)))
    files = write(tmp_path, [list(itertools.islice(numbers, n)) for n in per_file])
    options = {"shard": host, "shuffle_buffer": 20}
    shares = record_order.files_of_host(files, "train", host)
    sizes = record_index.record_sizes([share.path for share in shares])
    epoch = sum(
        len(of_file[share.start :: share.step])
        for share, of_file in zip(shares, sizes, strict=True)
    )
    straight = read(files, 3 * epoch, **options)
    num_used = int(used_fraction * epoch)
    needed = set(straight[epoch + num_used : 2 * epoch].tolist())
    for path in files:
        # TensorFlow checks the checksum of a record when it reads it.
        corrupt(path, keep_fn=lambda record: int(record) in needed)
    resumed = read(files, epoch - num_used, first_example=epoch + num_used, **options)
    np.testing.assert_array_equal(resumed, straight[epoch + num_used : 2 * epoch])
    with pytest.raises(tf.errors.DataLossError):
        read(files, epoch, **options)


def corrupt(path, keep_fn):
    """Changes the content of all records of 4 bytes, except those of keep_fn."""
    content = bytearray(pathlib.Path(path).read_bytes())
    for start in range(12, len(content), 20):
        if not keep_fn(content[start : start + 4]):
            content[start] ^= 1
    pathlib.Path(path).write_bytes(content)


@pytest.mark.parametrize(
    ("budget", "max_moved"), [(1, 0), (20 * 200, 200), (1 << 30, 300)]
)
def test_the_shuffle_stays_within_its_memory_limit(tmp_path, budget, max_moved):
    # A record of 4 bytes counts as 20: the file adds 16 bytes of framing.
    files = write(tmp_path, [range(1000)])
    numbers = read(files, 1000, shuffle_buffer=300, shuffle_bytes=budget)
    plain = read(files, 1000, shuffle_buffer=1)
    positions = np.argsort(plain)[numbers]  # In the file, of each record read.
    moved = (positions - np.arange(1000)).max()
    assert max_moved * 0.8 <= moved <= max_moved
