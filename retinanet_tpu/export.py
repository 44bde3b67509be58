r"""Writes a SavedModel of a training run, ready to serve.

  python -m retinanet_tpu.export --model_dir=gs://bucket/run1 [--checkpoint=…]

It goes to MODEL_DIR/export/latest/<10-digit time>; `serving_default` takes one image of
any size and gives boxes in its pixels.
"""

from retinanet_tpu.estimator import strategy
from retinanet_tpu.task import cli, configurables, serving_fn

_CHECKPOINT = cli.checkpoint_flag()


def main() -> None:
    """Runs the command."""
    cli.parse_model_dir("COMPUTE_DTYPE = 'float32'")  # Any server can run it.
    run = configurables.make_experiment(
        cli.model_dir(), strategy_fn=strategy.make_strategy
    )
    print(
        run.estimator.export_saved_model(
            f"{cli.model_dir()}/export/latest",
            serving_fn.serving_fn,
            checkpoint_path=_CHECKPOINT.value,
        )
    )


if __name__ == "__main__":
    cli.run(main)
