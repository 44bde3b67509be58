"""Makes a data directory of a few drawn images, and the smallest RetinaNet for it."""

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
# Ids with gaps that do not start at 1, so that no index is equal to an id.
CATEGORIES = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
COLORS = {3: (220, 30, 30), 7: (30, 30, 220)}
NUM_TRAIN, NUM_VAL = 12, 6
# Bindings on top of quickstart.gin: the smallest network that has all parts.
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
# A pyramid of P4 and P5 only, for tests that compile or trace many replicas.
TWO_LEVELS = (
    "IMAGE_SIZE = (64, 64)",
    "FPN.min_level = 4",
    "FPN.max_level = 5",
    "Anchors.min_level = 4",
    "Anchors.max_level = 5",
    "Anchors.size = 1.0",
)
# AdamW divides by the size of the gradient, which amplifies rounding errors.
SGD = (
    "WeightUpdate.optimizer = @SGD()",
    "SGD.learning_rate = @constant_rate",
    "constant_rate.base = 0.01",
)


def write(data_dir: pathlib.Path) -> str:
    """Writes a data directory with the splits train and val; returns its path."""
    write_split(data_dir, "train", NUM_TRAIN, first_id=100)
    write_split(data_dir, "val", NUM_VAL, first_id=500)
    categories = category_map.from_coco(CATEGORIES)
    category_map.write(categories, f"{data_dir}/{category_map.FILE_NAME}")
    return str(data_dir)


def write_split(data_dir, split, count, *, first_id=1):
    """Writes `<split>.json`, two record files, and images in data_dir/pictures."""
    images_dir = pathlib.Path(data_dir) / "pictures"
    images_dir.mkdir(parents=True, exist_ok=True)
    images = [_draw(images_dir, first_id + i) for i in range(count)]
    annotated = annotations.AnnotatedSet(images, CATEGORIES)
    converter.write_shards(
        annotated,
        images_dir=str(images_dir),
        output_dir=str(data_dir),
        split=split,
        num_shards=2,
    )
    annotations.write_coco(annotated, f"{data_dir}/{split}.json", description=split)


def parse(data_dir, *bindings: str) -> str:
    """Configures gin for the tiny network; returns the full configuration."""
    return gin_files.parse(
        [str(GIN_CONFIGS / "quickstart.gin")],
        [*TINY, f"DATA_DIR = '{data_dir}'", *bindings],
        known=configurables.CONFIGURABLES,
    )


def make_run(
    model_dir,
    data_dir,
    *bindings: str,
    num_replicas: int = 1,
    engine: str = "tf.distribute",
    compilation_cache: str = "",
):
    """Returns the tiny run on logical CPUs.

    Args:
      model_dir: The directory of the run; None if only its network is used.
      data_dir: The data directory.
      *bindings: Further gin bindings.
      num_replicas: The number of logical CPUs.
      engine: The engine of make_strategy.
      compilation_cache: The directory of compiled programs, or "".
    """
    parse(data_dir, *bindings)
    strategy_fn = functools.partial(
        strategy.make_strategy,
        "cpu",
        engine=engine,
        num_devices=num_replicas,
        compilation_cache=compilation_cache,
    )
    return configurables.make_run(model_dir and str(model_dir), strategy_fn=strategy_fn)


def train(run, max_steps: int | None = None) -> str:
    """Trains a run; returns the path of its last checkpoint."""
    return run.estimator.train(
        run.train_spec.input_fn, max_steps or run.train_spec.max_steps
    )


def train_dataset(run, batch_size: int = 8):
    """Returns the training batches of a single replica."""
    context = spec.TPUContext(num_replicas=1, num_hosts=1, current_host=0)
    params = run.params | {"batch_size": batch_size, "context": context}
    return run.train_spec.input_fn(params)


def _draw(images_dir, image_id):
    """Draws one to three colored rectangles on gray, in landscape or portrait."""
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
        object_id = 10 * image_id + number
        objects.append(
            annotations.AnnotatedObject(object_id, category, box, float(h * w), False)
        )
    name = f"{image_id}.jpg"
    image = PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image.save(images_dir / name)
    return annotations.AnnotatedImage(image_id, name, height, width, tuple(objects))
