"""The input pipeline: record files -> batches of uint8 images and padded boxes.

Normalizing and target assignment are the device's work. Nothing here depends on time,
on the number of threads or on TensorFlow's global seed: the same arguments give the
same batches, bit for bit. Only the tf.data service, where one is named, gives that up:
its workers' batches come in the order in which they are ready.
"""

import dataclasses
from collections.abc import Callable, Sequence

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.data import (
    category_map,
    data_service,
    examples,
    record_files,
    record_order,
)


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """The settings that training and evaluation datasets share.

    Attributes:
      data_dir: The directory of `<split>-?????-of-?????.tfrecord`.
      split: The name of the split, such as "train".
      categories: The classes of the directory's categories.json.
      image_size: The height and width of the network's input, px.
      max_boxes: N of the padded labels. Of more boxes the largest are kept.
    """

    data_dir: str
    split: str
    categories: category_map.Categories
    image_size: tuple[int, int]
    max_boxes: int = 100

    @property
    def output_spec(self) -> examples.OutputSpec:
        """Returns the static shape of an example."""
        return examples.OutputSpec(self.image_size, self.max_boxes)


DEFAULT_AUGMENTATION = examples.Augmentation()
DEFAULT_ORDER = record_order.ReadOptions()


def make_train_dataset(
    spec: DatasetSpec,
    *,
    batch_size: int,
    augmentation: examples.Augmentation = DEFAULT_AUGMENTATION,
    order: record_order.ReadOptions = DEFAULT_ORDER,
) -> tf.data.Dataset:
    """Returns an endless dataset of training batches.

    The order is a pure function of (seed, epoch) and an example's augmentation of
    (seed, its place in the order), so a resumed run sees what the straight run saw.
    Boxes cropped to less than a pixel are dropped; of more than max_boxes the largest
    stay.

    With order.service_address each epoch has every record of the host once, too, and
    another augmentation each time. But the workers read up to 16 files each, and their
    batches come as they are ready, so that epochs overlap by what is open. A resumed
    run goes on with the first file that the straight run would not have used up. The
    open files of a worker that dies are left out of that epoch.

    Args:
      data_dir: the folder of `<split>-?????-of-?????.tfrecord`.
      split: "train", for instance.
      categories: of the folder's categories.json.
      batch_size: examples in a batch; the epochs run into each other.
      image_size: height and width of the network's input.
      max_boxes: N of the padded labels.
      augmentation: random changes.
      order: seed, shard and where to go on.

    Returns:
      Dataset of (structures.Features, structures.Labels) with static shapes.

    Raises:
      MissingFileError: the split has no files.
      UserError: fewer files than hosts, or empty or truncated files; the service does
        not answer.
    """
    address = order.service_address
    if address is not None:
        data_service.reach(address)
    files = record_files.find(spec.data_dir, spec.split)
    shares = record_order.files_of_host(files, spec.split, order.shard)
    read = (
        record_order.read_records_in_order
        if address is None
        else record_order.read_records_for_data_service
    )
    canvas = spec.output_spec

    def load(number: tf.Tensor, serialized: tf.Tensor):
        seed = tf.stack([order.seed, number])
        draws = tf.random.stateless_uniform([examples.NUM_UNIFORMS], seed)
        return examples.load_example(
            serialized, spec.categories, canvas, augmentation, draws
        )

    loaded = read(shares, order).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    batches = _batched(loaded, batch_size)
    return batches if address is None else data_service.distribute(batches, address)


def make_eval_dataset(
    spec: DatasetSpec,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Returns one pass over a split, in order, nothing dropped.

    Padding images (id structures.PADDING_IMAGE, no boxes) fill the last batch, and
    whole batches where another host has more: every host makes the same number.

    Args:
      data_dir: the folder of `<split>-?????-of-?????.tfrecord`.
      split: "val", for instance.
      categories: of the folder's categories.json.
      batch_size: images in a batch, padding included.
      image_size: height and width of the network's input.
      max_boxes: N of the padded labels.
      shard: (index of this host, number of hosts).

    Returns:
      Dataset of (structures.Features, structures.Labels) with static shapes.

    Raises:
      MissingFileError: the split has no files.
      UserError: a truncated file.
    """
    files = record_files.find(spec.data_dir, spec.split)
    counts = record_files.count_records(files)
    num_hosts = shard[1]
    num_batches = max(
        -(-sum(counts[h::num_hosts]) // batch_size) for h in range(num_hosts)
    )
    canvas = spec.output_spec
    records = tf.data.TFRecordDataset(
        record_files.share(files, shard), buffer_size=record_order.READ_BUFFER_BYTES
    )
    loaded = records.map(
        lambda serialized: examples.load_example(serialized, spec.categories, canvas),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    padding = tf.data.Dataset.from_tensors(examples.padding_example(canvas)).repeat()
    return _batched(loaded.concatenate(padding), batch_size).take(num_batches)


def explain_failure(
    error: Exception, files: Sequence[str], categories: category_map.Categories
) -> Exception | None:
    """Finds the record behind an error that reading raised.

    Reads the files again, record by record: minutes on a large data set.

    Args:
      error: what came out of a step.
      files: the record files that it read.
      categories: of the data directory.

    Returns:
      ValueError that names file, record and image, or None where every record is sound
      or the error is not of the kind that data cause.
    """
    if not isinstance(error, tf.errors.DataLossError | tf.errors.InvalidArgumentError):
        return None
    canvas = examples.OutputSpec((64, 64))
    load = tf.function(lambda s: examples.load_example(s, categories, canvas))
    found = (_damage(path, load) for path in files)
    return next((damage for damage in found if damage is not None), None)


def _damage(path: str, load_fn: Callable[[tf.Tensor], object]) -> ValueError | None:
    number, records = 0, iter(tf.data.TFRecordDataset(path))
    while True:
        try:
            serialized = next(records)
            load_fn(serialized)
        except StopIteration:
            return None
        except tf.errors.DataLossError as cause:
            return errors.UserError(
                f"{path} is damaged at record {number} ({_first_line(cause)}); copy "
                "the file again, or write it again with retinanet-tpu convert."
            )
        except tf.errors.InvalidArgumentError as cause:
            return errors.UserError(
                f"Record {number} of {path} (image {_source_id(serialized)}) cannot be "
                f"used: {_first_line(cause)}. Mend or leave out that image and convert "
                "again with retinanet-tpu convert, which skips broken images."
            )
        number += 1


def _batched(loaded: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # The files are shared out above; TensorFlow must not do it once more.
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
