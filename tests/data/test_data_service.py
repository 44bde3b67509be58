import concurrent.futures
import itertools
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import repository
import toy_data
from retinanet_tpu.data import (
    category_map,
    data_service,
    examples,
    pipeline,
    record_files,
    record_order,
)

pytestmark = pytest.mark.long

NUM_FILES, PER_FILE = 6, 2
NUM_RECORDS = NUM_FILES * PER_FILE
IDS = set(range(100, 100 + NUM_RECORDS))
PATIENCE = 120  # s. The work takes about one second on an idle machine.


# A dispatcher and two workers in a process of their own, which the test kills: stop()
# would wait for the readers, and the readers for the workers.
_SERVICE = """
import os, sys
from retinanet_tpu.startup import tensorflow_import
tensorflow_import.run()  # Takes a third less than TensorFlow with Keras and jax.
import tensorflow as tf
service = tf.data.experimental.service
dispatcher = service.DispatchServer()
host = dispatcher.target.removeprefix("grpc://")
workers = [service.WorkerServer(service.WorkerConfig(host)) for _ in range(2)]
print(dispatcher.target, flush=True)
sys.stdin.read()  # Returns when the test process has ended.
os._exit(0)
"""


@pytest.fixture(scope="module")
def address():
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVICE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        cwd=repository.ROOT,
        text=True,
    )
    with process:
        yield process.stdout.readline().strip()
        process.kill()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The toy records, two in each of six files."""
    folder = pathlib.Path(toy_data.write(tmp_path_factory.mktemp("data")))
    files = record_files.find(str(folder), "train")
    records = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
    for path in files:
        pathlib.Path(path).unlink()
    write(folder, records)
    return str(folder)


def write(folder, records):
    for index in range(NUM_FILES):
        path = folder / record_files.file_name("train", index, NUM_FILES)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records[index * PER_FILE : (index + 1) * PER_FILE]:
                writer.write(record)


def numbers(data_dir, **options):
    """Returns a dataset of the numbers of the records."""
    options = record_order.ReadOptions(**options)
    files = record_files.find(data_dir, "train")
    shares = record_order.files_of_host(files, "train", options.shard)
    records = record_order.read_records_for_data_service(shares, options)

    def number_of(number, _):
        return number

    return records.map(number_of)


def train(data_dir, batch_size=4, **options):
    categories = category_map.from_coco(toy_data.CATEGORIES)
    return pipeline.make_train_dataset(
        pipeline.DatasetSpec(data_dir, "train", categories, image_size=(32, 32)),
        batch_size=batch_size,
        augmentation=examples.Augmentation(scale_jitter=(0.5, 1.5), color_jitter=0.5),
        read_options=record_order.ReadOptions(**options),
    )


def take(iterator, count):
    """Returns the next elements; fails if they take longer than PATIENCE."""
    reader = concurrent.futures.ThreadPoolExecutor(1)
    result = reader.submit(lambda: list(itertools.islice(iterator, count)))
    reader.shutdown(wait=False)
    return result.result(PATIENCE)


def epoch_positions(numbers):
    return np.array(numbers) >> 32


@pytest.mark.parametrize(
    "text",
    [
        "host:5050",
        "grpc://host",
        "http://host:1",
        "grpc://host:1/x",
        "grpc://:1",
        "",
        5,
    ],
)
def test_an_invalid_address_is_an_error_with_the_expected_form(text):
    with pytest.raises(ValueError, match=r"DATA_SERVICE_ADDRESS.*grpc://HOST:5050"):
        data_service.parse_address(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("grpc://host:50", ("host", 50)), ("grpc://[::1]:50", ("::1", 50))],
)
def test_addresses_have_a_host_and_a_port(text, parts):
    assert data_service.parse_address(text) == parts


def test_an_address_without_a_listener_is_an_error_with_the_command_to_start():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        assert data_service.connect(f"grpc://localhost:{port}") == "127.0.0.1"
    with pytest.raises(ValueError, match=rf"role=dispatcher --port={port}"):
        data_service.connect(f"grpc://localhost:{port}")


def test_every_record_of_an_epoch_is_served_once(address, data_dir):
    source = numbers(data_dir)
    epochs = set(itertools.islice(source.as_numpy_iterator(), 3 * NUM_RECORDS))
    assert sorted(epoch_positions(sorted(epochs))) == sorted(
        [*range(3 * NUM_FILES)] * PER_FILE
    )
    served = data_service.distribute(source, address).as_numpy_iterator()
    read = []
    while not epochs <= set(read):
        read += take(served, NUM_RECORDS)
        assert len(read) < 100 * NUM_RECORDS  # One worker may be far ahead.
    assert len(set(read)) == len(read)


def test_an_image_is_augmented_differently_in_each_epoch(address, data_dir):
    batches = take(iter(train(data_dir, service_address=address)), 12)
    ids = np.concatenate([features.image_ids for features, _ in batches])
    images = [image.tobytes() for f, _ in batches for image in f.images.numpy()]
    assert set(ids) <= IDS and len(set(ids)) < len(ids)
    assert len(set(zip(ids, images, strict=True))) == len(ids)


def test_hosts_of_one_service_read_different_records(address, data_dir):
    ids = []
    for host in range(2):
        batches = train(data_dir, shard=(host, 2), service_address=address)
        features = [features for features, _ in take(iter(batches), 9)]
        ids.append(set(np.concatenate([f.image_ids for f in features])))
    assert ids[0] | ids[1] == IDS and not ids[0] & ids[1]


def test_record_numbers_differ_between_hosts(data_dir):
    shares = [numbers(data_dir, shard=(host, 2)).take(50) for host in range(2)]
    read = [number for share in shares for number in share.as_numpy_iterator()]
    assert len(set(read)) == len(read)


@pytest.mark.parametrize("used", [1, 5, 12, 19])
def test_a_resumed_run_starts_with_the_first_file_not_fully_read(data_dir, used):
    files = [record_order.Share(f) for f in record_files.find(data_dir, "train")]

    def records(first_example):
        options = record_order.ReadOptions(first_example=first_example)
        source = record_order.read_records_for_data_service(files, options)
        some = source.take(4 * NUM_RECORDS)
        return {int(number): record.numpy() for number, record in some}

    straight, resumed = records(0), records(used)
    assert epoch_positions(min(resumed)) == used // PER_FILE
    both = straight.keys() & resumed.keys()
    assert len(both) > NUM_RECORDS
    assert all(straight[number] == resumed[number] for number in both)


def test_a_broken_image_raises_the_same_error_through_the_service(
    address, data_dir, tmp_path
):
    files = record_files.find(data_dir, "train")
    (record,) = tf.data.TFRecordDataset(files).take(1).as_numpy_iterator()
    example = tf.train.Example.FromString(record)
    example.features.feature["image/encoded"].bytes_list.value[0] = b"broken"
    write(tmp_path, [example.SerializeToString()] * NUM_RECORDS)
    with pytest.raises(tf.errors.InvalidArgumentError, match="worker"):
        take(iter(train(str(tmp_path), service_address=address)), 1)
