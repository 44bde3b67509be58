"""A data directory of a few drawn images, and the smallest RetinaNet to see them."""

import functools
import pathlib

import numpy as np
import PIL.Image

import repository
from retinanet_tpu.conversion import converter
from retinanet_tpu.data import annotations, category_map
from retinanet_tpu.estimator import gin_files, spec
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.task import configurables

GIN_CONFIGS = repository.ROOT / "gin_configs"
# Ids with gaps and not from 1, so that an index never passes for an id.
CATEGORIES = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
COLORS = {3: (220, 30, 30), 7: (30, 30, 220)}
NUM_TRAIN, NUM_VAL = 12, 6
# On top of quickstart.gin: nothing can be smaller and still have all parts.
TINY = (
    "NUM_CLASSES = 2",
    "ResNet.width = 8",
    "FPN.num_channels = 16",
    "Heads.num_channels = 16",
    "Heads.num_convs = 1",
    "decode.num_candidates = 100",
    "NMS.max_detections = 20",
    "Data.max_boxes = 8",
    "TrainingPlan.num_visualized_images = 2",
    "BATCH_SIZE = 8",
    "MAX_STEPS = 4",
    "EVAL_EVERY = None",
    "RunConfig.save_checkpoints_steps = 2",
    "TPUConfig.iterations_per_loop = 2",
    "cosine.warmup_steps = 1",
)
# A pyramid of P4 and P5 only, for tests that compile much or trace many replicas.
TWO_LEVELS = (
    "IMAGE_SIZE = (64, 64)",
    "FPN.min_level = 4",
    "FPN.max_level = 5",
    "Anchors.min_level = 4",
    "Anchors.max_level = 5",
    "Anchors.size = 1.0",
)
# AdamW divides by the gradient's own size, so that its rounding errors become moves.
SGD = (
    "WeightUpdate.optimizer = @SGD()",
    "SGD.learning_rate = @constant_rate",
    "constant_rate.base = 0.01",
)


def write(data_dir: pathlib.Path) -> str:
    """Writes records, annotations and categories of two splits; returns the folder."""
    write_split(data_dir, "train", NUM_TRAIN, first_id=100)
    write_split(data_dir, "val", NUM_VAL, first_id=500)
    listed = category_map.from_coco(CATEGORIES)
    category_map.write(listed, f"{data_dir}/{category_map.FILE_NAME}")
    return str(data_dir)


def write_split(data_dir, split, count, *, first_id=1):
    """Writes `split.json`, two record files, and the images in data_dir/pictures."""
    pictures = pathlib.Path(data_dir) / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    images = [_draw(pictures, first_id + i) for i in range(count)]
    annotated = annotations.AnnotatedSet(images, CATEGORIES)
    converter.write_shards(
        annotated,
        images_dir=str(pictures),
        output_dir=str(data_dir),
        split=split,
        num_shards=2,
    )
    annotations.write_coco(annotated, f"{data_dir}/{split}.json", description=split)


def parse(data_dir, *bindings: str) -> str:
    """Configures gin for the tiny network; returns the whole configuration."""
    return gin_files.parse(
        [str(GIN_CONFIGS / "quickstart.gin")],
        [*TINY, f"DATA_DIR = '{data_dir}'", *bindings],
        known=configurables.CONFIGURABLES,
    )


def make_run(model_dir, data_dir, *bindings: str, num_replicas: int = 1):
    """Returns the tiny run on logical CPUs; model_dir None makes only its network."""
    parse(data_dir, *bindings)
    where = functools.partial(strategy.make_strategy, "cpu", num_devices=num_replicas)
    return configurables.make_run(model_dir and str(model_dir), strategy_fn=where)


def train(run, max_steps: int | None = None) -> str:
    """Trains a run; returns the path of its last checkpoint."""
    return run.estimator.train(
        run.train_spec.input_fn, max_steps or run.train_spec.max_steps
    )


def train_dataset(run, batch_size: int = 8):
    """Returns the batches that one replica trains on."""
    context = spec.TPUContext(num_replicas=1, num_hosts=1, current_host=0)
    params = run.params | {"batch_size": batch_size, "context": context}
    return run.train_spec.input_fn(params)


def _draw(pictures, image_id):
    """Draws one to three colored rectangles on gray, lying or standing."""
    rng = np.random.default_rng(image_id)
    height, width = (96, 128) if image_id % 2 else (128, 96)
    pixels = rng.normal(128, 8, [height, width, 3])
    objects = []
    for number in range(1 + image_id % 3):
        category = CATEGORIES[(image_id + number) % 2]["id"]
        h, w = rng.integers(24, 64, 2)
        y, x = rng.integers(0, height - h), rng.integers(0, width - w)
        pixels[y : y + h, x : x + w] = COLORS[category]
        box = tuple(float(v) for v in (x, y, w, h))
        identity = 10 * image_id + number
        objects.append(
            annotations.AnnotatedObject(identity, category, box, float(h * w), False)
        )
    name = f"{image_id}.jpg"
    picture = PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    picture.save(pictures / name)
    return annotations.AnnotatedImage(image_id, name, height, width, tuple(objects))
