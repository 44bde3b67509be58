"""TFRecords as the estimator's input."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.data import (
    category_map,
    data_service,
    examples,
    pipeline,
    record_files,
    record_order,
    tf_example,
)
from retinanet_tpu.estimator import spec
from retinanet_tpu.task.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Data:
    """A data directory, as retinanet-tpu convert writes it.

    Attributes:
      dir: The directory of `<split>-*` records, `<split>.json` annotations and
        categories.json.
      train_split: The name of the split to train on.
      eval_split: The name of the split to evaluate on.
      augmentation: The augmentation of training images.
      max_boxes: The number of rows of the padded labels; of more boxes the largest are
        kept.
      service_address: The grpc://HOST:PORT of a tf.data service that makes the training
        batches, in no fixed order; None makes them on this host, in a fixed order.
      shuffle_bytes: The memory for the shuffle of a host's training records. It holds
        at most 1,024 records.

    Raises:
      UserError: A setting is out of its range, or service_address is not an address.
    """

    dir: str
    train_split: str = "train"
    eval_split: str = "val"
    augmentation: examples.Augmentation = dataclasses.field(
        default_factory=examples.Augmentation
    )
    max_boxes: int = 100
    service_address: str | None = None
    shuffle_bytes: int = 1 << 30

    def __post_init__(self):
        """Checks the settings."""
        if not self.dir:
            raise errors.UserError(
                "DATA_DIR is empty; set it to the directory that the converter wrote."
            )
        _check_augmentation(self.augmentation)
        if self.service_address and self.augmentation.last_mixed_step is not None:
            raise errors.UserError(
                "Augmentation.last_mixed_step does not work with "
                "Data.service_address, whose batches belong to no step; unset one."
            )
        if self.shuffle_bytes < 1:
            raise errors.UserError(
                f"Data.shuffle_bytes is {self.shuffle_bytes}; it must be at least 1 "
                "byte, e.g. 1073741824 for 1 GiB."
            )
        if self.service_address is not None:
            data_service.parse_address(self.service_address)

    @property
    def annotation_file(self) -> str:
        """Returns the path of the COCO JSON of the evaluation split."""
        return f"{self.dir}/{self.eval_split}.json"

    def read_categories(self) -> category_map.Categories:
        """Reads the categories of the directory.

        Raises:
          MissingFileError: There is no such directory, or it has no categories.json.
          UserError: categories.json is corrupt.
        """
        record_files.check_directory(self.dir)
        return category_map.read(f"{self.dir}/{category_map.FILE_NAME}")

    def read_images(self, num: int) -> list[np.ndarray]:
        """Returns the first images of the evaluation split, in their stored sizes.

        Args:
          num: The most images.
        Returns:
          uint8 [H, W, 3] each; an empty list if the split is missing, with a warning.
        """
        try:
            files = record_files.find(self.dir, self.eval_split)
        except FileNotFoundError as error:
            logging.warning("No images of the evaluation split: %s", error)
            return []
        records = tf.data.TFRecordDataset(files).take(num)
        encoded = [tf_example.parse(record).encoded for record in records]
        return [
            tf.io.decode_image(content, 3, expand_animations=False).numpy()
            for content in encoded
        ]


def input_fn(
    params: Mapping[str, Any], *, data: Data, is_training: bool, seed: int = 0
) -> tf.data.Dataset:
    """Returns batches of (Features, Labels) for this host's replicas.

    Only training uses a tf.data service: an evaluation needs each image exactly once.

    Args:
      params: "recipe", and from the estimator "batch_size" per replica and "context",
        the TPUContext of this host.
      data: The data directory.
      is_training: True for shuffled, augmented, endless batches; False for one pass in
        which padding images fill the last batches.
      seed: The seed of order and augmentation; equal seeds give equal batches.
    Raises:
      UserError: The data's categories are not those of the run, or the data service
        does not answer.
    """
    recipe: Recipe = params["recipe"]
    categories = _read_categories(data, recipe.categories)
    context: spec.TPUContext = params["context"]
    batch_size: int = params["batch_size"]
    shard = (context.current_host, context.num_hosts)
    # The number of images that one step takes from this host.
    step_size = batch_size * context.num_of_replicas_per_host
    dataset_spec = pipeline.DatasetSpec(
        data.dir,
        data.train_split if is_training else data.eval_split,
        categories=categories,
        image_size=recipe.image_size,
        max_boxes=data.max_boxes,
        keep_aspect_ratio=recipe.keep_aspect_ratio,
    )
    if is_training:
        last_mixed_step = data.augmentation.last_mixed_step
        return pipeline.make_train_dataset(
            dataset_spec,
            batch_size=batch_size,
            augmentation=data.augmentation,
            read_options=record_order.ReadOptions(
                seed,
                shard,
                context.first_step * step_size,
                shuffle_bytes=data.shuffle_bytes,
                service_address=data.service_address,
            ),
            num_mixed=None
            if last_mixed_step is None
            else last_mixed_step * step_size * context.num_hosts,
        )
    # A pass must end at the same step on every replica, so a host pads whole steps.
    dataset = pipeline.make_eval_dataset(
        dataset_spec, batch_size=step_size, shard=shard
    )
    is_whole = step_size == batch_size
    return dataset if is_whole else dataset.rebatch(batch_size, drop_remainder=True)


def _check_augmentation(augmentation: examples.Augmentation) -> None:
    """Checks the ranges of the settings.

    Raises:
      UserError: A setting is out of its range.
    """
    for name in ("scale_jitter", "mosaic_scale"):
        low, high = getattr(augmentation, name)
        if not 0 < low <= high:
            raise errors.UserError(
                f"Augmentation.{name} is {(low, high)}; it must be (smallest, "
                "largest) size, both above 0, e.g. (0.8, 1.2)."
            )
    if not 0 <= augmentation.color_jitter < 1:
        raise errors.UserError(
            f"Augmentation.color_jitter is {augmentation.color_jitter}; it must be 0 "
            "(none) or more and below 1, e.g. 0.2. Factors are drawn from "
            "1 - color_jitter to 1 + color_jitter."
        )
    for name in ("random_erasing", "mosaic", "mixup"):
        probability = getattr(augmentation, name)
        if not 0 <= probability <= 1:
            raise errors.UserError(
                f"Augmentation.{name} is {probability}; it is a probability, from 0 "
                "(never) to 1."
            )


def _read_categories(
    data: Data, expected: category_map.Categories | None
) -> category_map.Categories:
    """Returns the categories of the data, which must be those of the run."""
    categories = data.read_categories()
    if categories != expected:
        raise errors.UserError(
            f"The classes of {data.dir}/{category_map.FILE_NAME} are not those that "
            "the model_dir was started with; use the same data or another --model_dir."
        )
    return categories
