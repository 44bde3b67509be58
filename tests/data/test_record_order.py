import itertools

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.data import record_files, record_order

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
    """Writes sorted records as many converters deal them."""
    return write(folder, [range(i, NUM_RECORDS, num_files) for i in range(num_files)])


def read(files, count, *, read_fn=record_order.read_records_in_order, **order):
    """Returns the numbers of the first records that a host sees."""
    order = record_order.ReadOptions(**order)
    shares = record_order.files_of_host(files, "train", order.shard)
    records = read_fn(shares, order).map(
        lambda _, record: tf.strings.to_number(record, tf.int64)
    )
    return np.array(list(records.take(count).as_numpy_iterator()))


def classes_of_batches(numbers, batch_size=64):
    classes = numbers * NUM_CLASSES // NUM_RECORDS
    whole = len(classes) // batch_size * batch_size
    return [len(set(batch)) for batch in classes[:whole].reshape(-1, batch_size)]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("num_files", [16, 20, 64])
def test_sorted_records_that_were_dealt_in_turn_come_mixed(tmp_path, num_files, reader):
    files = write(
        tmp_path, [range(i, NUM_RECORDS, num_files) for i in range(num_files)]
    )
    # A buffer that cannot mix classes by itself: one has 200 records.
    seen = read(files, 2 * NUM_RECORDS, read_fn=READERS[reader], shuffle_buffer=100)
    num_classes = classes_of_batches(seen)
    assert np.median(num_classes) >= 9 and min(num_classes) >= 7


@pytest.mark.parametrize("num_files", [4, 16, 64])
def test_epochs_have_unlike_orders(tmp_path, num_files):
    files = write(
        tmp_path, [range(i, NUM_RECORDS, num_files) for i in range(num_files)]
    )
    seen = read(files, 2 * NUM_RECORDS, shuffle_buffer=10).reshape(2, NUM_RECORDS)
    places = np.argsort(seen, axis=1)
    assert abs(np.corrcoef(places)[0, 1]) < 0.5


@pytest.mark.parametrize(
    ("per_file", "sizes"),
    [
        ([10], [10]),
        ([9, 0, 1], [10]),
        ([5, 0, 0, 0, 4], [9]),
        ([40, *[1] * 20], [60]),
        ([4, 1, 2], [4, 1, 2]),
        # What is left over after whole files is shared record by record.
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
        seen = read(files, 2 * size, shard=(host, len(sizes)))
        for epoch, part in zip(epochs, np.split(seen, 2), strict=True):
            epoch += part.tolist()
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(sum(per_file)))


@pytest.mark.parametrize("num_hosts", [1, 3])
def test_each_place_of_a_service_is_one_whole_share_of_a_file(tmp_path, num_hosts):
    files = write(tmp_path, [range(10 * i, 10 * i + 6) for i in range(7)])
    whole = {frozenset(range(10 * i, 10 * i + 6)) for i in range(7)}
    seen = set()
    for host in range(num_hosts):
        order = record_order.ReadOptions(shard=(host, num_hosts))
        shares = record_order.files_of_host(files, "train", order.shard)
        groups = {}
        for number, record in record_order.read_records_for_data_service(
            shares, order
        ).take(200):
            groups.setdefault(int(number) >> 32, []).append(int(record.numpy()))
        epoch = [groups[place] for place in sorted(groups)[: len(shares)]]
        seen |= {frozenset(group) for group in epoch if len(group) == 6}
        # The 7th file's records go to three hosts.
        records = list(itertools.chain.from_iterable(epoch))
        assert len(records) == len(set(records)) == 42 // num_hosts
    assert seen == (whole if num_hosts == 1 else whole - {frozenset(range(60, 66))})


def test_hosts_that_do_not_divide_the_files_see_each_record_equally_often(
    tmp_path, caplog
):
    files = write(tmp_path, [range(i, 600, 5) for i in range(5)])
    sizes = [len(set(read(files, 600, shard=(host, 2)))) for host in range(2)]
    assert sizes == [300, 300]
    assert "5 train files are no multiple of 2 hosts" in caplog.text
    assert "--num_shards=6" in caplog.text


@pytest.mark.parametrize("num_hosts", [1, 2])
def test_a_resumed_run_sees_the_tail_of_the_straight_run(tmp_path, num_hosts):
    files = write(tmp_path, [range(i, 60, 19) for i in range(19)])
    options = {"shard": (num_hosts - 1, num_hosts), "shuffle_buffer": 5}
    straight = read(files, 150, **options)
    for used in (1, 7, 29, 60, 61, 133):
        resumed = read(files, 150 - used, first_example=used, **options)
        np.testing.assert_array_equal(resumed, straight[used:])


@pytest.mark.parametrize(
    ("budget", "max_moved"), [(1, 0), (20 * 200, 200), (1 << 30, 300)]
)
def test_the_shuffle_takes_no_more_memory_than_its_budget(tmp_path, budget, max_moved):
    # A record of 4 bytes takes 20 in its file, and in this count.
    files = write(tmp_path, [range(1000)])
    seen = read(files, 1000, shuffle_buffer=300, shuffle_bytes=budget)
    plain = read(files, 1000, shuffle_buffer=1)
    places = np.argsort(plain)[seen]  # Where the file's order has what comes now.
    moved = (places - np.arange(1000)).max()
    assert max_moved * 0.8 <= moved <= max_moved
