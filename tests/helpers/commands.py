"""The commands in this process, as their command lines would run them."""

from absl import flags
from absl.testing import flagsaver

import toy_data
from retinanet_tpu import train


def run(main, model_dir, data_dir, *bindings, **more):
    """Runs a command's main() on the tiny network; more flags by name."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    settings = {"model_dir": str(model_dir)} | more
    if main is train.main:
        settings["gin_file"] = [str(toy_data.GIN_CONFIGS / "quickstart.gin")]
        settings["gin_param"] = [
            *toy_data.TINY,
            *toy_data.TWO_LEVELS,
            f"DATA_DIR = '{data_dir}'",
            *bindings,
        ]
    with flagsaver.flagsaver(**settings):
        main()
