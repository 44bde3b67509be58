"""The recall of a run's anchors, and the boxes that each anchor is assigned to."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes.anchors import Anchors
from retinanet_tpu.data import examples, transforms
from retinanet_tpu.inspection import anchor_search, dataset_stats
from retinanet_tpu.learning import targets

ALL_SIZES = "all"


class AugmentedBoxes(NamedTuple):
    """The boxes of a split in the network's input, crowds left out.

    Attributes:
      boxes_yxyx: float32 [M, 4], px of the network's input.
      box_indices: int64 [M], the index of each box in the split.
    """

    boxes_yxyx: np.ndarray
    box_indices: np.ndarray


class AssignedAnchors(NamedTuple):
    """The positive anchors of one image.

    Attributes:
      anchors_yxyx: float32 [P, 4], px of the network's input.
      box_indices: int64 [P], the box of the image that each is assigned to.
      num_ignored: The number of anchors that carry no loss.
    """

    anchors_yxyx: np.ndarray
    box_indices: np.ndarray
    num_ignored: int


def augment_boxes(
    split: dataset_stats.Split,
    output: examples.OutputSpec,
    *,
    augmentation: examples.Augmentation | None = None,
    passes: int = 1,
    seed: int = 0,
) -> AugmentedBoxes:
    """Transforms boxes as the input pipeline does, without decoding images.

    Flips are left out: they change no box's sides.

    Args:
      split: The measured split.
      output: The size of the network's input and the number of boxes that it keeps.
      augmentation: The augmentation; None resizes whole images, as evaluation does.
      passes: The number of augmented samples of each image.
      seed: The seed of the random numbers.
    """
    low, high = augmentation.scale_jitter if augmentation else (1.0, 1.0)
    is_moved = augmentation is not None

    @tf.function(autograph=False)
    def augment(
        size: tf.Tensor, boxes_yxyx: tf.Tensor, sample: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        uniforms = tf.random.stateless_uniform([3], tf.stack([seed, sample]))
        window = transforms.crop_window(
            size,
            output.image_size,
            scale=low + uniforms[0] * (high - low),
            position=uniforms[1:] if is_moved else (0.0, 0.0),
            keep_aspect_ratio=output.keep_aspect_ratio,
        )
        moved = transforms.transform_boxes(boxes_yxyx, window)
        keep = transforms.largest_box_indices(moved, output.max_boxes)
        return tf.gather(moved, keep), keep

    rows = _rows(split)
    signature = (
        tf.TensorSpec([2], tf.int32),
        tf.TensorSpec([None, 4], tf.float32),
        tf.TensorSpec([], tf.int32),
    )

    def inputs() -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        for sample in range(passes * len(rows)):
            image = sample % len(rows)
            yield split.image_sizes[image], split.boxes_yxyx[rows[image]], sample

    dataset = tf.data.Dataset.from_generator(inputs, output_signature=signature)
    augmented = dataset.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    # The empty arrays keep the shapes where there are no images.
    boxes, indices = [np.zeros([0, 4], np.float32)], [np.zeros([0], np.int64)]
    for sample, (sample_boxes, keep) in enumerate(augmented.as_numpy_iterator()):
        boxes.append(sample_boxes)
        indices.append(rows[sample % len(rows)][keep])
    all_boxes, box_indices = np.concatenate(boxes), np.concatenate(indices)
    is_object = ~split.is_crowd[box_indices]
    return AugmentedBoxes(all_boxes[is_object], box_indices[is_object])


def by_size(
    ious: np.ndarray, augmented: AugmentedBoxes, split: dataset_stats.Split
) -> dict[str, anchor_search.Coverage]:
    """Returns the coverage of boxes by COCO's sizes and over all.

    Args:
      ious: float32 [M], the IoU of each augmented box with its best anchor.
      augmented: The boxes.
      split: The split that they are from; sizes are those of the annotated image.
    """
    sizes = split.size_indexes[augmented.box_indices]
    coverages = {
        name: anchor_search.coverage(ious[sizes == index])
        for index, name in enumerate(dataset_stats.SIZE_NAMES)
    }
    return coverages | {ALL_SIZES: anchor_search.coverage(ious)}


def assigned_anchors(
    assigned: targets.Targets, *, anchors: Anchors, image_size: tuple[int, int]
) -> list[AssignedAnchors]:
    """Returns the anchors that are assigned to boxes.

    Args:
      assigned: The targets that the run assigns to a batch.
      anchors: The anchors of the run.
      image_size: The height and width of the network's input, px.
    Returns:
      The positive anchors of each image of the batch.
    """
    matches = _matches_by_cell(assigned, anchors, image_size)
    centers, sides = np.split(np.concatenate(anchors.boxes_cyxhw(image_size)), 2, -1)
    anchors_yxyx = np.concatenate([centers - sides / 2, centers + sides / 2], axis=-1)
    return [
        AssignedAnchors(
            anchors_yxyx[boxes >= 0],
            boxes[boxes >= 0],
            int((boxes == structures.IGNORE).sum()),
        )
        for boxes in matches
    ]


def _matches_by_cell(
    assigned: targets.Targets, anchors: Anchors, image_size: tuple[int, int]
) -> np.ndarray:
    """Returns int64 [B, A]: the matches in the order of `Anchors.boxes_cyxhw`."""
    matches = assigned.matches.numpy().astype(np.int64)
    per_cell = anchors.num_per_cell
    lengths = [
        rows * columns * per_cell for rows, columns in anchors.grid_sizes(image_size)
    ]
    levels = np.split(matches, np.cumsum(lengths)[:-1], axis=1)
    by_cell = [
        level.reshape(len(matches), per_cell, -1).swapaxes(1, 2) for level in levels
    ]
    return np.concatenate([x.reshape(len(matches), -1) for x in by_cell], axis=1)


def _rows(split: dataset_stats.Split) -> list[np.ndarray]:
    """Returns int64 [boxes] for each image, the indices of its boxes in the split."""
    ends = np.cumsum(split.boxes_per_image)
    return np.split(np.arange(len(split.images)), ends[:-1]) if len(ends) else []
