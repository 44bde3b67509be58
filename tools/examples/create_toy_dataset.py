"""Draws a toy detection data set: bright shapes on textured ground, in COCO format.

  python tools/examples/create_toy_dataset.py --output_dir=OUT

Writes OUT/train/*.jpg, OUT/val/*.jpg, OUT/train.json and OUT/val.json, the same bytes
for the same flags. retinanet-tpu convert makes a data directory of them.
"""

import retinanet_tpu.startup.cpu

import colorsys
import json
import math
import os

import numpy as np
import tqdm
from absl import flags
from PIL import Image, ImageDraw, ImageFilter

from retinanet_tpu.startup import guard

_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder to write to.")
_NUM_TRAIN = flags.DEFINE_integer(
    "num_train", 400, "Images to train on.", lower_bound=1
)
_NUM_VAL = flags.DEFINE_integer("num_val", 100, "Images to validate on.", lower_bound=1)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Another seed draws another data set.", lower_bound=0
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 320, "Longer side of the images, px.", lower_bound=64
)

CLASSES = ("circle", "square", "triangle", "star")
_SUPERSAMPLING = 3  # Drawn larger and reduced, for smooth edges.
_MAX_OBJECTS = 6
_SIDES = (0.12, 0.4)  # of the longer side of the image
_MAX_HIDDEN = 0.15  # of the smaller box: enough to overlap, too little to confuse
_MAX_TRIES = 40
_MARGIN = 8  # px around a shape, room for its shadow


def outline(name: str, angle: float) -> np.ndarray:
    """Returns float64 [P, 2]: the corners (x, y) of a shape within the unit circle."""
    if name == "circle":
        radii, count = np.ones(90), 90
    elif name == "square":
        radii, count = np.ones(4), 4
    elif name == "triangle":
        radii, count = np.ones(3), 3
    else:
        radii, count = np.tile([1.0, 0.42], 5), 10
    turns = angle + np.arange(count) * 2 * math.pi / count
    return np.stack([radii * np.sin(turns), -radii * np.cos(turns)], axis=1)


def ground(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Returns a muted, cloudy image with some grain, RGB."""
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
    picture = tint + 14.0 * clouds[..., None] + grain
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def place(rng: np.random.Generator, width: int, height: int) -> list[tuple]:
    """Returns (class, corners) of objects that lie inside and overlap little."""
    placed, boxes = [], []
    wanted = rng.integers(1, _MAX_OBJECTS + 1)
    for _ in range(_MAX_TRIES):
        if len(placed) == wanted:
            break
        # Even in logarithm: as many small objects as large ones.
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
        if all(_hidden(box, other) <= _MAX_HIDDEN for other in boxes):
            placed.append((label, points))
            boxes.append(box)
    return placed


def draw(rng: np.random.Generator, longer_side: int) -> tuple[Image.Image, list[tuple]]:
    """Returns an image and its objects as (class, box x, y, width, height in px)."""
    sides = [longer_side, int(longer_side * rng.uniform(0.6, 1.0))]
    width, height = sides if rng.random() < 0.6 else sides[::-1]
    picture = ground(rng, width, height)
    mean = np.asarray(picture).mean(axis=(0, 1)) / 255
    objects = []
    for label, points in place(rng, width, height):
        color = _contrasting_color(rng, mean)
        _paint(picture, points, color)
        low, high = points.min(axis=0), points.max(axis=0)
        objects.append((label, *(float(round(v, 2)) for v in (*low, *(high - low)))))
    return picture, objects


def write_split(output_dir: str, split: str, count: int, seed: int, size: int) -> None:
    """Draws a split's images into a folder of its name and writes its COCO file."""
    folder = os.path.join(output_dir, split)
    os.makedirs(folder, exist_ok=True)
    images, annotations = [], []
    for image_id in tqdm.trange(1, count + 1, desc=split, unit=" images"):
        # A generator each, by name: more images leave the first ones as they were.
        rng = np.random.default_rng([seed, *split.encode(), image_id])
        picture, objects = draw(rng, size)
        name = f"{image_id:06d}.jpg"
        picture.save(os.path.join(folder, name), quality=92)
        images.append(
            {
                "id": image_id,
                "file_name": name,
                "height": picture.height,
                "width": picture.width,
            }
        )
        annotations += [
            {
                "id": len(annotations) + offset,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": box,
                "area": round(box[2] * box[3], 2),
                "iscrowd": 0,
            }
            for offset, (label, *box) in enumerate(objects, start=1)
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


def _hidden(box: np.ndarray, other: np.ndarray) -> float:
    """Returns the overlap of two corner boxes as a share of the smaller one."""
    shared = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    areas = [np.prod(b[2:] - b[:2]) for b in (box, other)]
    return float(np.prod(np.maximum(shared, 0)) / min(areas))


def _contrasting_color(rng: np.random.Generator, ground_rgb: np.ndarray) -> tuple:
    """Draws vivid colors until one stands off the ground."""
    while True:
        hsv = rng.random(), rng.uniform(0.65, 1.0), rng.uniform(0.55, 1.0)
        rgb = np.array(colorsys.hsv_to_rgb(*hsv))
        if np.linalg.norm(rgb - ground_rgb) > 0.45:
            return tuple((rgb * 255).astype(int).tolist())


def _paint(picture: Image.Image, points: np.ndarray, color: tuple) -> None:
    """Draws a shape, lit from above and with a soft shadow, onto the image."""
    low = np.floor(points.min(axis=0)).astype(int) - _MARGIN
    width, height = (np.ceil(points.max(axis=0)).astype(int) + _MARGIN - low).tolist()
    mask = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    corners = [tuple(point) for point in (points - low) * _SUPERSAMPLING]
    ImageDraw.Draw(mask).polygon(corners, fill=255)
    mask = mask.resize((width, height), Image.Resampling.BOX)
    shadow = mask.filter(ImageFilter.GaussianBlur(3)).point(lambda v: v * 0.35)
    left, top = low.tolist()
    picture.paste((0, 0, 0), (left + 2, top + 3), shadow)
    light = np.linspace(1.15, 0.85, height)[:, None, None]
    lit = np.broadcast_to(np.array(color) * light, [height, width, 3])
    shape = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    picture.paste(shape, (left, top), mask)


if __name__ == "__main__":
    flags.mark_flags_as_required(["output_dir"])
    guard.run(main)
