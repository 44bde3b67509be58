"""Makes annotations and detections for tests of the analysis."""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO

from retinanet_tpu.analysis import image_detections


def truth(objects, *, names, num_images, file_name="{}.jpg"):
    """Returns annotations of images 0, 1, ….

    Args:
      objects: (image id, category id, [x, y, width, height], is crowd) of each object.
      names: The names of the categories 1, 2, ….
      num_images: The number of images.
      file_name: The pattern of the file names.
    """
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [
            {"id": i, "file_name": file_name.format(i), "height": 500, "width": 600}
            for i in range(num_images)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": list(map(float, box)),
                "area": float(box[2] * box[3]),
                "iscrowd": int(crowd),
            }
            for number, (image, category, box, crowd) in enumerate(objects, start=1)
        ],
        "categories": [{"id": i, "name": n} for i, n in enumerate(names, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def detections(image_id, *rows):
    """Returns the detections of an image from (category id, [x, y, w, h], score)."""
    boxes = np.array([box for _, box, _ in rows], np.float64).reshape(-1, 4)
    x, y, width, height = boxes.T
    return image_detections.ImageDetections(
        image_id,
        np.stack([y, x, y + height, x + width], axis=-1),
        np.array([score for _, _, score in rows], np.float64),
        np.array([category for category, _, _ in rows], np.int64),
    )


def random_case(seed, *, num_images=14, num_classes=4, num_detections=30):
    """Returns annotations and detections with crowds, ties and empty images.

    The last class has no objects.
    """
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for image in range(num_images):
        mine = []
        for _ in range(rng.integers(0, 8)):
            box = [*rng.integers(0, 300, 2), *rng.integers(8, 140, 2)]
            category = int(rng.integers(1, num_classes))
            mine.append((image, category, box, rng.uniform() < 0.12))
        objects += mine
        rows = []
        for _ in range(num_detections if image % 5 else 0):
            if mine and rng.uniform() < 0.8:
                _, category, box, _ = mine[rng.integers(len(mine))]
                noise = rng.normal(size=4) * rng.choice([0, 4, 30])
                box = np.maximum(np.round(box + noise), 1)
            else:
                category = 1
                box = [*rng.integers(0, 300, 2), *rng.integers(8, 140, 2)]
            if rng.uniform() < 0.2:
                category = int(rng.integers(1, num_classes + 1))
            rows.append((category, box, round(float(rng.uniform()), 1)))
        found.append(detections(image, *rows))
    names = [f"class {i}" for i in range(num_classes)]
    annotated = truth(objects, names=names, num_images=num_images, file_name="{}_a.jpg")
    return annotated, found
