"""Writes a training run that never ran, for tools/benchmarks/latency.py to export.

  python tools/benchmarks/random_run.py --gin_file=gin_configs/coco_r50_640_30x.gin \
      --model_dir=DIR [--num_likely=1000]
  python -m retinanet_tpu.export --model_dir=DIR --check_images=PHOTOGRAPHS

Its checkpoint has random weights, but likely_scores.py has its hand in the class
logits: on the benchmark's own images --num_likely pairs of anchor and class are
above 0.05, on average; 0 leaves the logits as drawn, and no score above. Index 0 is no
class, as with COCO and with the Model Garden.
"""

import retinanet_tpu.startup.cpu

import likely_scores
import numpy as np
import tensorflow as tf
import timed_detector
from absl import flags

from retinanet_tpu.data import category_map, transforms
from retinanet_tpu.estimator import train_step
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.model import retinanet
from retinanet_tpu.task import cli, configurables

_NUM_LIKELY = flags.DEFINE_integer(
    "num_likely", 1000, "Pairs above 0.05 in an image.", lower_bound=0
)
# What the logits are spread over: all that the benchmark shows unless told otherwise.
_BATCHES = ((8, (640, 640)), (8, (480, 640)))


def spread_scores(
    network: retinanet.RetinaNet,
    image_size: tuple[int, int],
    is_class: np.ndarray,
    num_likely: int,
) -> None:
    """Makes scores likely, see likely_scores.py.

    Args:
      network: as drawn.
      image_size: of its input, px.
      is_class: bool [K], false for indexes without a class.
      num_likely: pairs of anchor and class above the threshold, an image.
    """
    conv = network.heads.class_tower.last_conv
    conv.bias.assign(tf.zeros_like(conv.bias))

    def logits(num_pictures, size):
        pictures = timed_detector.pictures(num_pictures, size)
        inputs, _ = transforms.letterbox(tf.constant(pictures), image_size)
        levels = network(inputs, is_training=False).class_logits
        rows = [tf.reshape(x, [num_pictures, -1, x.shape[-1]]) for x in levels]
        return tf.concat(rows, axis=1).numpy()

    kernel, bias = likely_scores.spread(
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
        spread_scores(network, image_size, is_class, _NUM_LIKELY.value)
    directory = cli.model_dir()
    tf.io.gfile.makedirs(directory)
    files.write_whole(f"{directory}/{cli.CONFIG_FILE}", text)
    files.write_whole(
        f"{directory}/{category_map.FILE_NAME}", category_map.to_json(categories)
    )
    print(train_step.TrainState(network, run.update_fn(network)).save(directory))


if __name__ == "__main__":
    cli.run(main)
