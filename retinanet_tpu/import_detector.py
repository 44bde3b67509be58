"""Imports a detector of torchvision or TensorFlow Model Garden as a run.

  python -m retinanet_tpu.import_detector --checkpoint=retinanet.pth --model_dir=run1 \
      [--categories=categories.json]

--checkpoint is a .pth or .safetensors file of torchvision's retinanet_resnet50_fpn or
retinanet_resnet50_fpn_v2, or a TensorFlow checkpoint of Model Garden's RetinaNet with
ResNet and FPN or with SpineNet. The library is recognized from the names of the
tensors. The command writes config.gin, categories.json and a checkpoint of step 0 to
--model_dir, so that `export`, `evaluate` and WARM_START accept it. The settings are
those of a run in gin_configs/. --gin_file and --gin_param change them, such as
IMAGE_SIZE.
"""

import retinanet_tpu.startup.cpu

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.data import category_map
from retinanet_tpu.estimator import train_step
from retinanet_tpu.estimator.model_dir import checkpoints, files
from retinanet_tpu.importing import detector, sources
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables

_CHECKPOINT = cli.checkpoint_flag()
_CATEGORIES = flags.DEFINE_string(
    "categories",
    None,
    "The categories.json of the detector; the default is COCO's if it has 91 classes.",
)


def main() -> None:
    """Runs the command."""
    if not _CHECKPOINT.value:
        raise errors.UserError(
            "--checkpoint is missing: the file of a detector, such as retinanet.pth."
        )
    model_dir = cli.model_dir()
    if checkpoints.latest(model_dir):
        raise errors.UserError(
            f"{model_dir} has checkpoints of a run; import to another --model_dir."
        )
    checkpoints.check_nothing_lost(model_dir)
    source = sources.read(_CHECKPOINT.value)
    categories = sources.categories(source.num_classes, _CATEGORIES.value)
    flags.FLAGS["gin_file"].value = [source.gin_file, *cli.GIN_FILE.value]
    config_text = cli.parse_files(*source.settings)
    path = _write(model_dir, source, categories, config_text)
    logging.info("import | %s", source.source)
    print(path)


def _write(
    model_dir: str,
    source: detector.Detector,
    categories: category_map.Categories,
    config_text: str,
) -> str:
    """Writes a run of step 0 with the weights of a detector; returns its checkpoint."""
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    network = run.make_network()
    detector.assign(network, source)
    state = train_step.TrainState(network, run.update_fn(network))
    tf.io.gfile.makedirs(model_dir)
    # The checkpoint is last: until then, the command can be repeated.
    files.write_whole(f"{model_dir}/{cli.CONFIG_FILE}", config_text)
    text = category_map.to_json(categories)
    files.write_whole(f"{model_dir}/{category_map.FILE_NAME}", text)
    return state.save(model_dir)


if __name__ == "__main__":
    guard.run(main)
