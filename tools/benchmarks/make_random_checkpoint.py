"""Writes a checkpoint with random weights, for tools/benchmarks/latency.py.

  python tools/benchmarks/make_random_checkpoint.py --model_dir=DIR \
      --gin_file=coco_r50_640_30x.gin [--num_likely=1000]
  python -m retinanet_tpu.export --model_dir=DIR --check_images=FOLDER

shift_class_logits.py shifts the class logits: on the benchmark's own images,
--num_likely pairs of anchor and class per image have a score above 0.05, on average.
With --num_likely=0 the logits are not changed, and no score is above 0.05. Index 0 is
no class, as in COCO and in Model Garden.
"""

import retinanet_tpu.startup.cpu

import numpy as np
import shift_class_logits
import tensorflow as tf
import timed_detector
from absl import flags

from retinanet_tpu.data import category_map, transforms
from retinanet_tpu.estimator import train_step
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.model import retinanet
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables

_NUM_LIKELY = flags.DEFINE_integer(
    "num_likely",
    1000,
    "Mean number of pairs of anchor and class with a score above 0.05, per image.",
    lower_bound=0,
)
# Batches over which the logits are normalized: the default cases of latency.py.
_BATCHES = ((8, (640, 640)), (8, (480, 640)))


def shift_logits(
    network: retinanet.RetinaNet,
    image_size: tuple[int, int],
    is_class: np.ndarray,
    num_likely: int,
) -> None:
    """Shifts the class logits of a network; see shift_class_logits.py.

    Args:
      network: The network with random weights; its last class layer is changed.
      image_size: The height and width of the network's input, px.
      is_class: A bool [K] array, False for indexes without a class.
      num_likely: The mean number of pairs of anchor and class above the threshold, per
        image.
    """
    conv = network.heads.class_tower.last_conv
    conv.bias.assign(tf.zeros_like(conv.bias))

    def logits(num_images: int, size: tuple[int, int]) -> np.ndarray:
        images = timed_detector.make_images(num_images, size)
        inputs, _ = transforms.letterbox(tf.constant(images), image_size)
        levels = network(inputs, is_training=False).class_logits
        rows = [tf.reshape(x, [num_images, -1, x.shape[-1]]) for x in levels]
        return tf.concat(rows, axis=1).numpy()

    kernel, bias = shift_class_logits.shift(
        conv.kernel.numpy(),
        np.concatenate([logits(*batch) for batch in _BATCHES]),
        is_class,
        num_likely,
    )
    conv.kernel.assign(kernel)
    conv.bias.assign(bias)


def main() -> None:
    """Runs the command."""
    text = cli.parse_files("COMPUTE_DTYPE = 'float32'")
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    num_classes = run.recipe.num_classes
    entries = [category_map.Category(i, i, f"class {i}") for i in range(1, num_classes)]
    categories = category_map.Categories(num_classes, tuple(entries))
    network = run.make_network()
    if _NUM_LIKELY.value:
        is_class = categories.ids != category_map.NO_CATEGORY
        image_size = run.recipe.image_size
        shift_logits(network, image_size, is_class, _NUM_LIKELY.value)
    directory = cli.model_dir()
    tf.io.gfile.makedirs(directory)
    files.write_whole(f"{directory}/{cli.CONFIG_FILE}", text)
    files.write_whole(
        f"{directory}/{category_map.FILE_NAME}", category_map.to_json(categories)
    )
    print(train_step.TrainState(network, run.update_fn(network)).save(directory))


if __name__ == "__main__":
    guard.run(main)
