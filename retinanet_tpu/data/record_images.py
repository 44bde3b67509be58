"""Reads single images of record files by their ids."""

import functools

import numpy as np
import tensorflow as tf

from retinanet_tpu.data import record_files, tf_example


class RecordImages:
    """The images of a split.

    The first access reads all records once, to learn where each image is.
    """

    def __init__(self, data_dir: str, split: str):
        """Initializes the images.

        Args:
          data_dir: The directory of the record files.
          split: The name of the split.
        """
        self._data_dir = data_dir
        self._split = split

    def __call__(self, image_id: int) -> np.ndarray | None:
        """Returns an image in its stored size, uint8 [H, W, 3] RGB.

        Args:
          image_id: The id in the annotation file.
        Returns:
          The image, or None if no record has this id.
        Raises:
          MissingFileError: The split has no files.
        """
        if image_id not in self._places:
            return None
        path, index = self._places[image_id]
        record = next(iter(tf.data.TFRecordDataset(path).skip(index)))
        encoded = tf_example.parse(record).encoded
        return tf.io.decode_image(encoded, 3, expand_animations=False).numpy()

    @functools.cached_property
    def _places(self) -> dict[int, tuple[str, int]]:
        """The file and the index of the record of each image, by its id."""
        places: dict[int, tuple[str, int]] = {}
        for path in record_files.find(self._data_dir, self._split):
            ids = tf.data.TFRecordDataset(path).map(_image_id).as_numpy_iterator()
            places |= {int(i): (path, index) for index, i in enumerate(ids)}
        return places


def _image_id(serialized: tf.Tensor) -> tf.Tensor:
    return tf_example.parse(serialized).image_id
