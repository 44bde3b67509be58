"""The input pipeline: record files -> batches of uint8 images and padded boxes.

Normalization and target assignment run on the device. The batches depend only on the
arguments: not on time, the number of threads or TensorFlow's global seed. The same
arguments give the same batches, bit for bit. The exception is the tf.data service: the
batches of its workers arrive in the order in which they are ready.
"""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from retinanet_tpu import errors, structures
from retinanet_tpu.data import (
    category_map,
    data_service,
    examples,
    mixing,
    record_files,
    record_index,
    record_order,
    tracing,
)

DEFAULT_AUGMENTATION = examples.Augmentation()
DEFAULT_READ_OPTIONS = record_order.ReadOptions()


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """The settings that training and evaluation datasets share.

    Attributes:
      data_dir: The directory of `<split>-?????-of-?????.tfrecord`.
      split: The name of the split, such as "train".
      categories: The classes of the directory's categories.json.
      image_size: The height and width of the network's input, px.
      max_boxes: N of the padded labels. Of more boxes the largest are kept.
      keep_aspect_ratio: As in `examples.OutputSpec`.
    """

    data_dir: str
    split: str
    categories: category_map.Categories
    image_size: tuple[int, int]
    max_boxes: int = 100
    keep_aspect_ratio: bool = True

    @property
    def output(self) -> examples.OutputSpec:
        """Returns the static shape of an example."""
        return examples.OutputSpec(
            self.image_size, self.max_boxes, self.keep_aspect_ratio
        )


@tracing.without_autograph
def make_train_dataset(
    spec: DatasetSpec,
    *,
    batch_size: int,
    augmentation: examples.Augmentation = DEFAULT_AUGMENTATION,
    read_options: record_order.ReadOptions = DEFAULT_READ_OPTIONS,
    num_mixed: int | None = None,
) -> tf.data.Dataset:
    """Returns an endless dataset of training batches.

    The order is a pure function of (seed, epoch). The augmentation of an example is a
    pure function of (seed, its number in the order). So a resumed run reads the same
    batches as an uninterrupted one. Boxes cropped to less than a pixel are dropped.
    Mosaics and mixups join examples of a group: four that follow each other.

    With the tf.data service:
    - Each epoch still has every record of the host once, with another augmentation.
    - Each worker reads up to 16 files at once, and its batches arrive as they are
      ready. Consecutive epochs therefore overlap.
    - A resumed run starts with the first file that was not fully read.
    - If a worker dies, the rest of its open files is missing from that epoch.

    Args:
      spec: The data and the static shape of an example.
      batch_size: The number of examples in a batch. A batch may span two epochs.
      augmentation: The random changes.
      read_options: The seed, the shard and the first example.
      num_mixed: The number of examples of all hosts, from the start of the run, among
        which are mosaics and mixups; None for all.

    Returns:
      Dataset of (structures.Features, structures.Labels) with static shapes.

    Raises:
      MissingFileError: The split has no files.
      UserError: There are fewer files than hosts, files are empty or truncated, or the
        tf.data service does not answer.
    """
    address = read_options.service_address
    if address is not None:
        data_service.connect(address)
    files = record_files.find(spec.data_dir, spec.split)
    shares = record_order.files_of_host(files, spec.split, read_options.shard)
    if augmentation.mixes:
        loaded = _mixed_examples(spec, augmentation, shares, read_options, num_mixed)
    else:

        def load(
            number: tf.Tensor, serialized: tf.Tensor
        ) -> tuple[structures.Features, structures.Labels]:
            uniforms = _example_uniforms(read_options.seed, number, augmentation)
            return examples.load_example(
                serialized, spec.categories, spec.output, augmentation, uniforms
            )

        records = _read(shares, read_options)
        loaded = records.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    batches = _batched(loaded, batch_size)
    return batches if address is None else data_service.distribute(batches, address)


@tracing.without_autograph
def make_eval_dataset(
    spec: DatasetSpec, *, batch_size: int, shard: tuple[int, int] = (0, 1)
) -> tf.data.Dataset:
    """Returns one pass over a split, in file order, with no image dropped.

    Padding images (id structures.PADDING_IMAGE, no boxes) fill the last batch. Hosts
    with fewer images add whole batches of them, so that all hosts have equally many.

    Args:
      spec: The data and the static shape of an example.
      batch_size: The number of images in a batch, padding included.
      shard: (index of this host, number of hosts).

    Returns:
      Dataset of (structures.Features, structures.Labels) with static shapes.

    Raises:
      MissingFileError: The split has no files.
      UserError: A file is truncated.
    """
    files = record_files.find(spec.data_dir, spec.split)
    counts = record_index.count_records(files)
    num_hosts = shard[1]
    num_batches = max(
        -(-sum(counts[host::num_hosts]) // batch_size) for host in range(num_hosts)
    )
    records = tf.data.TFRecordDataset(
        record_files.share(files, shard), buffer_size=record_order.READ_BUFFER_BYTES
    )
    loaded = records.map(
        lambda serialized: examples.load_example(
            serialized, spec.categories, spec.output
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    padding = tf.data.Dataset.from_tensors(examples.padding_example(spec.output))
    # Taken before the prefetch, which would otherwise make batches that nobody reads.
    padded = loaded.concatenate(padding.repeat()).take(num_batches * batch_size)
    return _batched(padded, batch_size)


def explain_failure(
    error: Exception, files: Sequence[str], categories: category_map.Categories
) -> Exception | None:
    """Finds the record that caused an error of the input pipeline.

    Reads the files again, record by record. This takes minutes on a large data set.

    Args:
      error: The error of a step.
      files: The record files that the step read.
      categories: The classes of the data directory.

    Returns:
      UserError with file, record and image; None if every record is valid or if the
      error is of a kind that data does not cause.
    """
    if not isinstance(error, tf.errors.DataLossError | tf.errors.InvalidArgumentError):
        return None
    output = examples.OutputSpec((64, 64))
    load = tf.function(
        lambda s: examples.load_example(s, categories, output), autograph=False
    )
    for path in files:
        explained = _first_broken_record(path, load)
        if explained is not None:
            return explained
    return None


def _first_broken_record(
    path: str, load_fn: Callable[[tf.Tensor], object]
) -> errors.UserError | None:
    records = iter(tf.data.TFRecordDataset(path))
    number = 0
    while True:
        try:
            serialized = next(records)
            load_fn(serialized)
        except StopIteration:
            return None
        except tf.errors.DataLossError as cause:
            return errors.UserError(
                f"{path} is corrupt at record {number} ({_first_line(cause)}); copy "
                "the file again, or write it again with retinanet-tpu convert."
            )
        except tf.errors.InvalidArgumentError as cause:
            return errors.UserError(
                f"Record {number} of {path} (image {_source_id(serialized)}) cannot be "
                f"used: {_first_line(cause)}. Correct or remove that image and convert "
                "again with retinanet-tpu convert, which skips broken images."
            )
        number += 1


def _read(
    shares: Sequence[record_order.Share], options: record_order.ReadOptions
) -> tf.data.Dataset:
    """Returns an endless dataset of (number, serialized record)."""
    if options.service_address is None:
        return record_order.read_records_in_order(shares, options)
    return record_order.read_records_for_data_service(shares, options)


def _uniforms(seed: int, number: tf.Tensor, count: int, stream: int = 0) -> tf.Tensor:
    """Returns float32 [count] in [0, 1), a function of the arguments.

    Args:
      seed: The seed of the run.
      number: int64 [], the number of the example.
      count: The number of random numbers.
      stream: Another stream gives other numbers.
    """
    key = tf.stack([seed, number])
    if stream:
        key = tf.random.experimental.stateless_fold_in(key, stream)
    return tf.random.stateless_uniform([count], key)


def _example_uniforms(
    seed: int, number: tf.Tensor, augmentation: examples.Augmentation
) -> tf.Tensor:
    """Returns the random numbers of `examples.load_image`, float32 [...].

    Random operations have a stream of their own. So they change no crop and no flip.
    """
    uniforms = _uniforms(seed, number, examples.NUM_UNIFORMS)
    num_others = augmentation.num_random_op_uniforms
    if not num_others:
        return uniforms
    return tf.concat([uniforms, _uniforms(seed, number, num_others, 2)], axis=0)


def _mixed_examples(
    spec: DatasetSpec,
    augmentation: examples.Augmentation,
    shares: Sequence[record_order.Share],
    options: record_order.ReadOptions,
    num_mixed: int | None,
) -> tf.data.Dataset:
    """Returns an endless dataset of examples, some of which show several images."""

    size = mixing.GROUP_SIZE

    # Both are functions of their own, so that each is traced once and not four times.
    @tf.function(autograph=False)
    def load(number: tf.Tensor, serialized: tf.Tensor) -> examples.LoadedImage:
        uniforms = _example_uniforms(options.seed, number, augmentation)
        return examples.load_image(
            serialized, spec.categories, spec.output, augmentation, uniforms
        )

    @tf.function(autograph=False)
    def mix(
        number: tf.Tensor, group: list[examples.LoadedImage]
    ) -> tuple[structures.Features, structures.Labels]:
        uniforms = _uniforms(options.seed, number, mixing.NUM_UNIFORMS, 1)
        if num_mixed is not None:  # 1 is below no probability.
            uniforms = tf.where(number < num_mixed, uniforms, 1.0)
        mixed = mixing.mix(group, spec.image_size, augmentation, uniforms)
        return examples.pad(mixed, spec.output)

    def load_group(
        numbers: tf.Tensor, serialized: tf.Tensor
    ) -> tuple[structures.Features, structures.Labels]:
        """Returns as many examples as records, stacked."""
        group = [load(numbers[i], serialized[i]) for i in range(size)]
        mixed = [mix(numbers[i], group[i:] + group[:i]) for i in range(size)]
        return tf.nest.map_structure(lambda *parts: tf.stack(parts), *mixed)

    # A group begins at a multiple of its size, also after a resume in its middle.
    # With a service each worker makes its own groups.
    num_skipped = 0 if options.service_address else options.first_example % size
    options = options._replace(first_example=options.first_example - num_skipped)
    groups = _read(shares, options).batch(size, drop_remainder=True)
    mixed = groups.map(load_group, num_parallel_calls=tf.data.AUTOTUNE).unbatch()
    return mixed.skip(num_skipped)


def _batched(loaded: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # The files are already divided among the hosts; TensorFlow must not do it again.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    batches = loaded.batch(batch_size, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def _source_id(serialized: tf.Tensor) -> str:
    example = tf.train.Example.FromString(serialized.numpy())
    values = example.features.feature["image/source_id"].bytes_list.value
    return values[0].decode(errors="replace") if values else "without image/source_id"


def _first_line(error: tf.errors.OpError) -> str:
    return error.message.splitlines()[0].rstrip(".")
