"""Reads the images that a page shows."""

import os
from collections.abc import Callable

import numpy as np
from absl import logging
from pycocotools.coco import COCO

from retinanet_tpu import errors
from retinanet_tpu.data import image_files


def of_folder(truth: COCO, images_dir: str) -> Callable[[int], np.ndarray | None]:
    """Returns a function that reads an annotated image.

    The function returns uint8 [H, W, 3], RGB, for the id of an image. If the image
    cannot be read it logs a warning and returns None.

    Args:
      truth: The annotations.
      images_dir: The folder that the file names of the annotations are relative to.
    """

    def read(image_id: int) -> np.ndarray | None:
        name = str(truth.imgs[image_id].get("file_name") or "")
        try:
            return image_files.load(os.path.join(images_dir, name))
        except errors.UserError as error:
            logging.warning("The page lacks an image: %s", error)
            return None

    return read
