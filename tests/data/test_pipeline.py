import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.data import (
    annotations,
    category_map,
    examples,
    pipeline,
    record_files,
    record_order,
    tf_example,
)

CATEGORIES = category_map.from_coco([{"id": 1, "name": "cat"}])
JITTER = examples.Augmentation(scale_jitter=(0.8, 1.2))


def record(image_id, *, pixels=None):
    if pixels is None:
        rng = np.random.default_rng(image_id)
        stream = io.BytesIO()
        noise = rng.integers(0, 255, [24, 30, 3], np.uint8)
        PIL.Image.fromarray(noise).save(stream, "JPEG")
        pixels = stream.getvalue()
    box = annotations.AnnotatedObject(1, 1, (3.0, 4.0, 12.0, 9.0), 108.0, False)
    image = annotations.AnnotatedImage(image_id, "a", 24, 30, (box,))
    return tf_example.encode(image, pixels, image_format="jpeg", names={1: "cat"})


def write(folder, split, per_file, *, first_id=0):
    """Writes files of per_file records each; image ids count up."""
    image_id = first_id
    for index, count in enumerate(per_file):
        path = folder / record_files.file_name(split, index, len(per_file))
        with tf.io.TFRecordWriter(str(path)) as writer:
            for _ in range(count):
                writer.write(record(image_id))
                image_id += 1


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write(folder, "train", [4, 3, 3])
    write(folder, "val", [3, 1, 1])
    return str(folder)


MIXED = JITTER._replace(mosaic=0.7, mixup=0.3)
OPERATIONS = JITTER._replace(random_ops=2, random_magnitude=0.5, random_erasing=0.5)


def train(data_dir, *, batch_size=2, augmentation=JITTER, num_mixed=None, **options):
    return pipeline.make_train_dataset(
        pipeline.DatasetSpec(data_dir, "train", CATEGORIES, (32, 40), max_boxes=3),
        batch_size=batch_size,
        augmentation=augmentation,
        read_options=record_order.ReadOptions(**options),
        num_mixed=num_mixed,
    )


def evaluate(data_dir, *, batch_size=2, shard=(0, 1)):
    return pipeline.make_eval_dataset(
        pipeline.DatasetSpec(data_dir, "val", CATEGORIES, (32, 40), max_boxes=3),
        batch_size=batch_size,
        shard=shard,
    )


def take(dataset, num_batches):
    batches = dataset.take(num_batches).as_numpy_iterator()
    return [tf.nest.flatten(batch) for batch in batches]


def ids(dataset, num_batches=None):
    batches = dataset if num_batches is None else dataset.take(num_batches)
    return [features.image_ids.numpy().tolist() for features, _ in batches]


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    tf.nest.map_structure(np.testing.assert_array_equal, batches, others)


def test_batches_have_static_shapes_and_record_types(data_dir):
    for dataset in (train(data_dir), evaluate(data_dir)):
        features, labels = dataset.element_spec
        assert isinstance(features, structures.Features)
        assert features.images == tf.TensorSpec([2, 32, 40, 3], tf.uint8)
        assert features.image_ids == tf.TensorSpec([2], tf.int64)
        assert features.image_sizes == tf.TensorSpec([2, 2], tf.int32)
        assert features.scales == tf.TensorSpec([2, 2], tf.float32)
        assert isinstance(labels, structures.Labels)
        assert labels.boxes_yxyx == tf.TensorSpec([2, 3, 4], tf.float32)
        assert labels.classes == tf.TensorSpec([2, 3], tf.int32)
        assert labels.is_crowd == tf.TensorSpec([2, 3], tf.bool)
        assert labels.num_boxes == tf.TensorSpec([2], tf.int32)


def test_every_epoch_has_each_image_once_in_another_order(data_dir):
    images = np.ravel(ids(train(data_dir), 15)).reshape(3, 10)
    for epoch in images:
        assert sorted(epoch) == list(range(10))
    assert len({tuple(epoch) for epoch in images}) == 3


@pytest.mark.long
def test_batches_repeat_bit_for_bit_under_any_global_seed(data_dir):
    tf.random.set_seed(1)
    first = take(train(data_dir, seed=5), 12)
    tf.random.set_seed(2)
    assert_same(first, take(train(data_dir, seed=5), 12))
    other = take(train(data_dir, seed=6), 12)
    assert any((a[1] != b[1]).any() for a, b in zip(first, other, strict=True))


def test_an_image_is_augmented_differently_in_each_epoch(data_dir):
    variants = {}
    for images, image_ids, *_ in take(train(data_dir), 15):
        for image, image_id in zip(images, image_ids, strict=True):
            variants.setdefault(image_id, set()).add(image.tobytes())
    assert sum(len(different) == 3 for different in variants.values()) >= 9


@pytest.mark.long
@pytest.mark.parametrize("num_used_up", [1, 4, 5, 7, 10])
def test_a_resumed_run_continues_the_uninterrupted_run(data_dir, num_used_up):
    straight = take(train(data_dir), 12)
    resumed = take(train(data_dir, first_example=2 * num_used_up), 12 - num_used_up)
    assert_same(straight[num_used_up:], resumed)


@pytest.mark.parametrize(
    "augmentation",
    [
        pytest.param(MIXED, marks=pytest.mark.slow),
        pytest.param(OPERATIONS, marks=pytest.mark.slow),
        OPERATIONS._replace(mosaic=0.7, mixup=0.3),
    ],
)
def test_every_augmentation_continues_after_a_resume(data_dir, augmentation):
    whole = take(train(data_dir, augmentation=augmentation, batch_size=1), 3 + 6)
    resumed = train(data_dir, augmentation=augmentation, batch_size=1, first_example=3)
    assert_same(whole[3:], take(resumed, 6))


def test_random_operations_do_not_change_the_order_and_the_crops(data_dir):
    plain = take(train(data_dir, batch_size=1), 12)
    changed = take(train(data_dir, augmentation=OPERATIONS, batch_size=1), 12)
    for a, b in zip(plain, changed, strict=True):
        # Ids, sizes of the images and scales.
        tf.nest.map_structure(np.testing.assert_array_equal, a[1:4], b[1:4])
    is_changed = [(a[0] != b[0]).any() for a, b in zip(plain, changed, strict=True)]
    assert sum(is_changed) >= 10


def test_mosaics_keep_the_order_and_end_after_the_given_number(data_dir):
    plain = take(train(data_dir, batch_size=1), 12)
    mixed = take(train(data_dir, augmentation=MIXED, batch_size=1, num_mixed=6), 12)
    assert_same(mixed[6:], plain[6:])
    assert [a[1] for a in mixed] == [b[1] for b in plain]
    is_changed = [(a[0] != b[0]).any() for a, b in zip(mixed, plain, strict=True)]
    assert 3 <= sum(is_changed) <= 6


@pytest.mark.long
def test_hosts_read_different_images_and_resume_in_the_same_way(data_dir):
    hosts = [np.ravel(ids(train(data_dir, shard=(host, 2)), 20)) for host in range(2)]
    assert set(hosts[0]) | set(hosts[1]) == set(range(10))
    assert not set(hosts[0]) & set(hosts[1])
    straight = take(train(data_dir, shard=(1, 2)), 8)
    resumed = take(train(data_dir, shard=(1, 2), first_example=10), 3)
    assert_same(straight[5:], resumed)


@pytest.mark.long
def test_hosts_use_different_random_numbers(tmp_path):
    for index in range(2):
        path = tmp_path / record_files.file_name("train", index, 2)
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(record(0))
    scales = [
        np.concatenate([batch[3] for batch in take(train(str(tmp_path), shard=s), 4)])
        for s in ((0, 2), (1, 2))
    ]
    assert (scales[0] != scales[1]).mean() > 0.5


def test_without_augmentation_training_and_evaluation_read_the_same(data_dir):
    plain = train(data_dir, augmentation=examples.Augmentation(horizontal_flip=False))
    images = {}
    for features, labels in plain.take(5):
        for i, image_id in enumerate(features.image_ids.numpy()):
            images[image_id] = (
                features.images[i].numpy(),
                labels.boxes_yxyx[i].numpy(),
            )
    serialized = tf.constant(record(4))
    features, labels = examples.load_example(
        serialized, CATEGORIES, examples.OutputSpec((32, 40), 3)
    )
    np.testing.assert_array_equal(images[4][0], features.images)
    np.testing.assert_array_equal(images[4][1], labels.boxes_yxyx)


def test_fewer_files_than_hosts_is_an_error_with_the_num_shards_to_use(data_dir):
    with pytest.raises(ValueError, match=r"3 train files.*num_shards=4"):
        train(data_dir, shard=(0, 4))


def test_a_split_without_files_is_an_error_with_the_pattern(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-\?"):
        train(str(tmp_path))


def test_evaluation_keeps_order_and_pads_the_tail(data_dir):
    assert ids(evaluate(data_dir)) == [[0, 1], [2, 3], [4, structures.PADDING_IMAGE]]
    features, labels = list(evaluate(data_dir))[-1]
    assert labels.num_boxes.numpy().tolist() == [1, 0]
    assert not labels.boxes_yxyx[1].numpy().any()
    assert np.isfinite(1 / features.scales.numpy()).all()


@pytest.mark.long
def test_evaluation_hosts_have_equally_many_batches_and_drop_no_image(data_dir):
    hosts = [ids(evaluate(data_dir, shard=(host, 4))) for host in range(4)]
    assert [len(batches) for batches in hosts] == [2, 2, 2, 2]
    real = [i for i in np.ravel(hosts) if i != structures.PADDING_IMAGE]
    assert sorted(real) == [0, 1, 2, 3, 4]


def test_a_truncated_file_is_an_error_before_evaluation_starts(tmp_path):
    write(tmp_path, "val", [2])
    path = tmp_path / record_files.file_name("val", 0, 1)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"val-00000-of-00001.*truncated"):
        evaluate(str(tmp_path))


def failure_of(folder):
    with pytest.raises(tf.errors.OpError) as raised:
        take(train(str(folder)), 4)
    files = record_files.find(str(folder), "train")
    return pipeline.explain_failure(raised.value, files, CATEGORIES)


def write_records(folder, records):
    path = folder / record_files.file_name("train", 0, 1)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for serialized in records:
            writer.write(serialized)
    return path


@pytest.mark.long
def test_a_truncated_file_is_explained(tmp_path):
    path = write_records(tmp_path, [record(i) for i in range(10)])
    path.write_bytes(path.read_bytes()[:-9])
    assert "00001.tfrecord is corrupt at record 9" in str(failure_of(tmp_path))


def test_a_file_truncated_in_its_first_records_is_an_error_before_training_starts(
    tmp_path,
):
    path = write_records(tmp_path, [record(0), record(1)])
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="truncated: it ends within record 1"):
        train(str(tmp_path))


def test_a_broken_image_is_explained(tmp_path):
    whole = tf_example.parse(tf.constant(record(0))).encoded.numpy()
    broken = record(31, pixels=whole[: len(whole) // 2])
    write_records(tmp_path, [record(0), record(1), broken])
    explained = str(failure_of(tmp_path))
    assert "Record 2 of" in explained and "image 31" in explained
    assert "retinanet-tpu convert" in explained


def test_a_missing_key_is_explained(tmp_path):
    example = tf.train.Example.FromString(record(8))
    del example.features.feature["image/encoded"]
    write_records(tmp_path, [example.SerializeToString()])
    explained = str(failure_of(tmp_path))
    assert "Record 0 of" in explained and "image/encoded" in explained


def test_other_errors_and_valid_files_are_not_explained(data_dir):
    files = record_files.find(data_dir, "train")
    assert pipeline.explain_failure(RuntimeError("x"), files, CATEGORIES) is None
    error = tf.errors.InvalidArgumentError(None, None, "shapes differ")
    assert pipeline.explain_failure(error, files, CATEGORIES) is None


def test_an_unknown_category_is_explained(tmp_path):
    write_records(tmp_path, [record(0), record(1)])
    other = category_map.from_coco([{"id": 5, "name": "cow"}])
    files = record_files.find(str(tmp_path), "train")
    error = tf.errors.InvalidArgumentError(None, None, "")
    explained = str(pipeline.explain_failure(error, files, other))
    assert "Record 0 of" in explained and "not in categories.json" in explained


def test_the_datasets_do_not_depend_on_tensorflows_rewrites_of_datasets(data_dir):
    # A user may switch them off. They also hide a function that cannot be executed.
    plain = tf.data.Options()
    plain.experimental_optimization.apply_default_optimizations = False
    for dataset in (train(data_dir), train(data_dir, augmentation=MIXED)):
        expected, got = take(dataset, 2), take(dataset.with_options(plain), 2)
        tf.nest.map_structure(np.testing.assert_array_equal, got, expected)
