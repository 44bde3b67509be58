"""What a run's anchors meet: the boxes as the network sees them, and who gets which."""

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
    """Boxes of a split on the network's canvas, crowds left out."""

    boxes_yxyx: np.ndarray  # float32 [M, 4], px of the network's input
    places: np.ndarray  # int64 [M], which box of the split each is


class AssignedBox(NamedTuple):
    """The positive anchors of one image."""

    anchors_yxyx: np.ndarray  # float32 [P, 4], px of the network's input
    boxes: np.ndarray  # int64 [P], which of the image's boxes each answers for
    num_ignored: int  # anchors that carry no loss


def augment_boxes(
    split: dataset_stats.Split,
    canvas: examples.OutputSpec,
    *,
    augmentation: examples.Augmentation | None = None,
    passes: int = 1,
    seed: int = 0,
) -> AugmentedBoxes:
    """Moves boxes as the input pipeline does, without a look at the pixels.

    Mirroring is left out: it changes no box's sides.

    Args:
      split: measured.
      canvas: of the network.
      augmentation: None shows whole images, as evaluation does.
      passes: how often to draw the luck of each image.
      seed: of the draws.
    """
    low, high = augmentation.scale_jitter if augmentation else (1.0, 1.0)
    is_moved = augmentation is not None

    @tf.function
    def shown(size, boxes_yxyx, place):
        draws = tf.random.stateless_uniform([3], tf.stack([seed, place]))
        window = transforms.crop_window(
            size,
            canvas.image_size,
            scale=low + draws[0] * (high - low),
            position=draws[1:] if is_moved else (0.0, 0.0),
        )
        moved = transforms.transform_boxes(boxes_yxyx, window)
        seen = tf.where(transforms.is_nonempty(moved))[:, 0]
        largest = transforms.largest_box_indices(
            tf.gather(moved, seen), canvas.max_boxes
        )
        keep = tf.gather(seen, largest)
        return tf.gather(moved, keep), keep

    rows = _rows(split)
    signature = (
        tf.TensorSpec([2], tf.int32),
        tf.TensorSpec([None, 4], tf.float32),
        tf.TensorSpec([], tf.int32),
    )

    def inputs():
        for number in range(passes * len(rows)):
            image = number % len(rows)
            yield split.image_sizes[image], split.boxes_yxyx[rows[image]], number

    dataset = tf.data.Dataset.from_generator(inputs, output_signature=signature)
    moved = dataset.map(shown, num_parallel_calls=tf.data.AUTOTUNE)
    boxes, places = [np.zeros([0, 4], np.float32)], [np.zeros([0], np.int64)]
    for number, (found, keep) in enumerate(moved.as_numpy_iterator()):
        boxes.append(found)
        places.append(rows[number % len(rows)][keep])
    joined, origins = np.concatenate(boxes), np.concatenate(places)
    is_object = ~split.is_crowd[origins]
    return AugmentedBoxes(joined[is_object], origins[is_object])


def by_size(
    ious: np.ndarray, shown: AugmentedBoxes, split: dataset_stats.Split
) -> dict[str, anchor_search.Coverage]:
    """Returns how well boxes are reached, by COCO's sizes and over all.

    Args:
      ious: float32 [M], of each shown box with its best anchor.
      shown: the boxes.
      split: where they are from; sizes are those of the image as annotated.
    """
    sizes = split.size_indexes[shown.places]
    found = {
        name: anchor_search.coverage(ious[sizes == index])
        for index, name in enumerate(dataset_stats.SIZE_NAMES)
    }
    return found | {ALL_SIZES: anchor_search.coverage(ious)}


def assigned_anchors(
    assigned: targets.Targets, *, anchors: Anchors, image_size: tuple[int, int]
) -> list[AssignedBox]:
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
        AssignedBox(
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
    """Returns int64 [boxes] for each image: where its boxes are in the split."""
    ends = np.cumsum(split.boxes_per_image)
    return np.split(np.arange(len(split.images)), ends[:-1]) if len(ends) else []
