"""Runs commands in this process, with the flags of a command line."""

from absl import flags
from absl.testing import flagsaver

import toy_data
from retinanet_tpu import train


def run(main, model_dir, data_dir, *bindings, **flag_values):
    """Runs the main() of a command on the tiny network.

    Args:
      main: The function.
      model_dir: The value of --model_dir.
      data_dir: The data directory of train.main.
      *bindings: The gin bindings of train.main.
      **flag_values: The values of other flags.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    settings = {"model_dir": str(model_dir)} | flag_values
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
