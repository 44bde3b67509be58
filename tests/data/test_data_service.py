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

import toy_data
from retinanet_tpu.data import (
    category_map,
    data_service,
    examples,
    pipeline,
    record_files,
    record_order,
)

NUM_FILES, PER_FILE = 6, 2
NUM_RECORDS = NUM_FILES * PER_FILE
IDS = set(range(100, 100 + NUM_RECORDS))
PATIENCE = 120  # s, for what takes a second; a loaded machine is slow


# A dispatcher and two workers in a process of their own, which can just be killed:
# their stop() waits for readers, and those for them.
_SERVICE = """
import os, sys
import tensorflow as tf
service = tf.data.experimental.service
dispatcher = service.DispatchServer()
host = dispatcher.target.removeprefix("grpc://")
workers = [service.WorkerServer(service.WorkerConfig(host)) for _ in range(2)]
print(dispatcher.target, flush=True)
sys.stdin.read()  # Until this process is gone, however it ended.
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


def numbers(data_dir, **order):
    """Returns a dataset of the numbers that records have."""
    order = record_order.ReadOptions(**order)
    files = record_files.find(data_dir, "train")
    shares = record_order.files_of_host(files, "train", order.shard)
    records = record_order.read_records_for_data_service(shares, order)

    def number_of(number, _):
        return number

    return records.map(number_of)


def train(data_dir, batch_size=4, **order):
    categories = category_map.from_coco(toy_data.CATEGORIES)
    return pipeline.make_train_dataset(
        pipeline.DatasetSpec(data_dir, "train", categories, image_size=(32, 32)),
        batch_size=batch_size,
        augmentation=examples.Augmentation(scale_jitter=(0.5, 1.5), color_jitter=0.5),
        order=record_order.ReadOptions(**order),
    )


def take(iterator, count):
    """Returns the next elements, or fails where they do not come."""
    reader = concurrent.futures.ThreadPoolExecutor(1)
    found = reader.submit(lambda: list(itertools.islice(iterator, count)))
    reader.shutdown(wait=False)
    return found.result(PATIENCE)


def places(found):
    return np.array(found) >> 32


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
def test_an_address_of_another_form_is_an_error_that_shows_the_form(text):
    with pytest.raises(ValueError, match=r"DATA_SERVICE_ADDRESS.*grpc://HOST:5050"):
        data_service.parse_address(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("grpc://host:50", ("host", 50)), ("grpc://[::1]:50", ("::1", 50))],
)
def test_addresses_have_a_host_and_a_port(text, parts):
    assert data_service.parse_address(text) == parts


def test_an_address_at_which_nothing_listens_says_what_to_start():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
        assert data_service.reach(f"grpc://localhost:{port}") == "127.0.0.1"
    with pytest.raises(ValueError, match=rf"role=dispatcher --port={port}"):
        data_service.reach(f"grpc://localhost:{port}")


def test_every_record_of_an_epoch_comes_once(address, data_dir):
    source = numbers(data_dir)
    epochs = set(itertools.islice(source.as_numpy_iterator(), 3 * NUM_RECORDS))
    assert sorted(places(sorted(epochs))) == sorted([*range(3 * NUM_FILES)] * PER_FILE)
    served = data_service.distribute(source, address).as_numpy_iterator()
    seen = []
    while not epochs <= set(seen):
        seen += take(served, NUM_RECORDS)
        assert len(seen) < 100 * NUM_RECORDS  # One worker may be far ahead.
    assert len(set(seen)) == len(seen)


def test_an_image_looks_different_in_each_epoch(address, data_dir):
    batches = take(iter(train(data_dir, service_address=address)), 12)
    ids = np.concatenate([features.image_ids for features, _ in batches])
    images = [image.tobytes() for f, _ in batches for image in f.images.numpy()]
    assert set(ids) <= IDS and len(set(ids)) < len(ids)
    assert len(set(zip(ids, images, strict=True))) == len(ids)


def test_hosts_at_one_service_share_the_records_out(address, data_dir):
    seen = []
    for host in range(2):
        batches = train(data_dir, shard=(host, 2), service_address=address)
        features = [features for features, _ in take(iter(batches), 9)]
        seen.append(set(np.concatenate([f.image_ids for f in features])))
    assert seen[0] | seen[1] == IDS and not seen[0] & seen[1]


def test_numbers_of_hosts_are_their_own(data_dir):
    shares = [numbers(data_dir, shard=(host, 2)).take(50) for host in range(2)]
    found = [number for share in shares for number in share.as_numpy_iterator()]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("used", [1, 5, 12, 19])
def test_a_resumed_run_goes_on_with_the_first_file_not_used_up(data_dir, used):
    files = [record_order.Share(f) for f in record_files.find(data_dir, "train")]

    def records(first_example):
        order = record_order.ReadOptions(first_example=first_example)
        found = record_order.read_records_for_data_service(files, order).take(
            4 * NUM_RECORDS
        )
        return {int(number): record.numpy() for number, record in found}

    straight, resumed = records(0), records(used)
    assert places(min(resumed)) == used // PER_FILE
    both = straight.keys() & resumed.keys()
    assert len(both) > NUM_RECORDS
    assert all(straight[number] == resumed[number] for number in both)


def test_a_broken_picture_is_the_error_that_it_is_without_the_service(
    address, data_dir, tmp_path
):
    files = record_files.find(data_dir, "train")
    (record,) = tf.data.TFRecordDataset(files).take(1).as_numpy_iterator()
    example = tf.train.Example.FromString(record)
    example.features.feature["image/encoded"].bytes_list.value[0] = b"broken"
    write(tmp_path, [example.SerializeToString()] * NUM_RECORDS)
    with pytest.raises(tf.errors.InvalidArgumentError, match="worker"):
        take(iter(train(str(tmp_path), service_address=address)), 1)
