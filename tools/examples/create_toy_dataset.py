"""Draws a toy detection data set in COCO format: shapes on a textured background.

  python tools/examples/create_toy_dataset.py --output_dir=OUT

The tool writes OUT/train/*.jpg, OUT/val/*.jpg, OUT/train.json and OUT/val.json. The
same flags give the same bytes. `retinanet-tpu convert` converts the files to records.
"""

import retinanet_tpu.startup.cpu

import colorsys
import json
import math
import os
from typing import Any

import numpy as np
import tqdm
from absl import flags
from PIL import Image, ImageDraw, ImageFilter

from retinanet_tpu.startup import guard

_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder to write the data set to.", required=True
)
_NUM_TRAIN = flags.DEFINE_integer(
    "num_train", 400, "Number of training images.", lower_bound=1
)
_NUM_VAL = flags.DEFINE_integer(
    "num_val", 100, "Number of validation images.", lower_bound=1
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the random numbers that draw the images.", lower_bound=0
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 320, "Longer side of the images, px.", lower_bound=64
)

CLASSES = ("circle", "square", "triangle", "star")
_SUPERSAMPLING = 3  # Shapes are drawn larger and reduced, for smooth edges.
_MAX_OBJECTS = 6
_SIDES = (0.12, 0.4)  # Sizes of shapes, in fractions of the image's longer side.
# The largest fraction of the smaller box that another object may cover. Shapes overlap
# but remain recognizable.
_MAX_OVERLAP = 0.15
_MAX_TRIES = 40
_MARGIN = 8  # Space around a shape for its shadow, px.


def outline(name: str, angle: float) -> np.ndarray:
    """Returns the corners of a shape in the unit circle.

    Args:
      name: The class, one of CLASSES.
      angle: The rotation in radians.

    Returns:
      float64 [P, 2], the corners (x, y).
    """
    if name == "circle":
        radii, count = np.ones(90), 90
    elif name == "square":
        radii, count = np.ones(4), 4
    elif name == "triangle":
        radii, count = np.ones(3), 3
    else:
        radii, count = np.tile([1.0, 0.42], 5), 10
    angles = angle + np.arange(count) * 2 * math.pi / count
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Returns a muted, cloudy RGB image with some grain.

    Args:
      rng: The source of random numbers.
      width: The width, px.
      height: The height, px.
    """
    clouds = np.zeros([height, width])
    for cells in (3, 7, 17):
        noise = rng.normal(size=[cells, cells]).astype(np.float32)
        octave = Image.fromarray(noise).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        clouds += np.asarray(octave) / cells**0.5
    hue, base = rng.random(), rng.uniform(60, 190)
    tint = np.array(colorsys.hsv_to_rgb(hue, 0.3, 1.0)) * base
    grain = rng.normal(scale=5.0, size=[height, width, 1])
    pixels = tint + 14.0 * clouds[..., None] + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def place_objects(
    rng: np.random.Generator, width: int, height: int
) -> list[tuple[int, np.ndarray]]:
    """Places objects inside an image with little overlap.

    Args:
      rng: The source of random numbers.
      width: The width of the image, px.
      height: The height of the image, px.

    Returns:
      The class index and the corners, float64 [P, 2], of each object.
    """
    placed: list[tuple[int, np.ndarray]] = []
    boxes: list[np.ndarray] = []
    num_objects = rng.integers(1, _MAX_OBJECTS + 1)
    for _ in range(_MAX_TRIES):
        if len(placed) == num_objects:
            break
        # Uniform in the logarithm: as many small objects as large ones.
        side = max(width, height) * math.exp(rng.uniform(*np.log(_SIDES)))
        label = int(rng.integers(len(CLASSES)))
        points = outline(CLASSES[label], rng.uniform(0, 2 * math.pi))
        points *= np.array([rng.uniform(0.8, 1.25), 1.0]) * side / 2
        low, high = points.min(axis=0), points.max(axis=0)
        room = np.array([width, height]) - 2 - (high - low)
        if (room <= 0).any():
            continue
        points += 1 + rng.random(2) * room - low
        box = np.concatenate([points.min(axis=0), points.max(axis=0)])
        if all(_overlap(box, other) <= _MAX_OVERLAP for other in boxes):
            placed.append((label, points))
            boxes.append(box)
    return placed


def draw(
    rng: np.random.Generator, longer_side: int
) -> tuple[Image.Image, list[tuple[int, list[float]]]]:
    """Draws an image.

    Args:
      rng: The source of random numbers.
      longer_side: The longer side of the image, px.

    Returns:
      The RGB image, and the class index and box (x, y, width, height in px) of each
      object.
    """
    sides = [longer_side, int(longer_side * rng.uniform(0.6, 1.0))]
    width, height = sides if rng.random() < 0.6 else sides[::-1]
    image = background(rng, width, height)
    mean = np.asarray(image).mean(axis=(0, 1)) / 255
    objects = []
    for label, points in place_objects(rng, width, height):
        color = _contrasting_color(rng, mean)
        _paint(image, points, color)
        low, high = points.min(axis=0), points.max(axis=0)
        box_xywh = [float(round(v, 2)) for v in (*low, *(high - low))]
        objects.append((label, box_xywh))
    return image, objects


def write_split(output_dir: str, split: str, count: int, seed: int, size: int) -> None:
    """Writes the images of a split to a folder of its name, and its COCO file.

    Args:
      output_dir: The folder of the data set.
      split: The name of the split.
      count: The number of images.
      seed: The seed of the data set.
      size: The longer side of the images, px.
    """
    folder = os.path.join(output_dir, split)
    os.makedirs(folder, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in tqdm.trange(1, count + 1, desc=split, unit=" images"):
        # Each image has its own generator, so the number of images changes no image.
        rng = np.random.default_rng([seed, *split.encode(), image_id])
        image, objects = draw(rng, size)
        name = f"{image_id:06d}.jpg"
        image.save(os.path.join(folder, name), quality=92)
        images.append(
            {
                "id": image_id,
                "file_name": name,
                "height": image.height,
                "width": image.width,
            }
        )
        annotations += [
            {
                "id": len(annotations) + offset,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": box_xywh,
                "area": round(box_xywh[2] * box_xywh[3], 2),
                "iscrowd": 0,
            }
            for offset, (label, box_xywh) in enumerate(objects, start=1)
        ]
    content = {
        "info": {"description": f"Toy shapes, {split}, seed {seed}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in enumerate(CLASSES, start=1)],
    }
    with open(os.path.join(output_dir, f"{split}.json"), "w") as file:
        json.dump(content, file)


def main() -> None:
    """Draws both splits."""
    for split, count in (("train", _NUM_TRAIN.value), ("val", _NUM_VAL.value)):
        write_split(_OUTPUT_DIR.value, split, count, _SEED.value, _IMAGE_SIZE.value)


def _overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Returns the intersection of two corner boxes divided by the smaller area."""
    shared = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    areas = [np.prod(b[2:] - b[:2]) for b in (box, other)]
    return float(np.prod(np.maximum(shared, 0)) / min(areas))


def _contrasting_color(
    rng: np.random.Generator, background_rgb: np.ndarray
) -> tuple[int, ...]:
    """Draws vivid random colors until one contrasts with the background."""
    while True:
        hsv = rng.random(), rng.uniform(0.65, 1.0), rng.uniform(0.55, 1.0)
        rgb = np.array(colorsys.hsv_to_rgb(*hsv))
        if np.linalg.norm(rgb - background_rgb) > 0.45:
            return tuple((rgb * 255).astype(int).tolist())


def _paint(image: Image.Image, points: np.ndarray, color: tuple[int, ...]) -> None:
    """Draws a shape onto the image, lit from above and with a soft shadow."""
    low = np.floor(points.min(axis=0)).astype(int) - _MARGIN
    width, height = (np.ceil(points.max(axis=0)).astype(int) + _MARGIN - low).tolist()
    mask = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    corners = [tuple(point) for point in (points - low) * _SUPERSAMPLING]
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    mask = mask.resize((width, height), Image.Resampling.BOX)
    shadow = mask.filter(ImageFilter.GaussianBlur(3)).point(lambda v: v * 0.35)
    left, top = low.tolist()
    image.paste((0, 0, 0), (left + 2, top + 3), shadow)
    light = np.linspace(1.15, 0.85, height)[:, None, None]
    lit = np.broadcast_to(np.array(color) * light, [height, width, 3])
    shape = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    image.paste(shape, (left, top), mask)


if __name__ == "__main__":
    guard.run(main)
