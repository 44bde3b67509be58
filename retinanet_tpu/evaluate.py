r"""Scores a checkpoint of a training run on COCO.

  python -m retinanet_tpu.evaluate --model_dir=gs://bucket/run1 [--checkpoint=…]

Logs COCO's table and writes MODEL_DIR/eval. Needs no TPU: the run's settings come from
MODEL_DIR/config.gin, its device does not.
"""

from absl import flags

from retinanet_tpu.estimator import strategy
from retinanet_tpu.task import cli, configurables

_CHECKPOINT = cli.checkpoint_flag()
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where to evaluate.")


def main() -> None:
    """Runs the command."""
    is_cpu = _DEVICE.value == "cpu"
    cli.parse_model_dir(*(["COMPUTE_DTYPE = 'float32'"] if is_cpu else []))
    run = configurables.make_experiment(
        cli.model_dir(),
        strategy_fn=lambda: strategy.make_strategy(_DEVICE.value, num_devices=1),
    )
    with cli.data_errors_explained(run):
        run.estimator.evaluate(
            run.eval_spec.input_fn, checkpoint_path=_CHECKPOINT.value
        )


if __name__ == "__main__":
    cli.run(main)
