"""The summary of a configured run, which `train --dry_run` prints."""

import tensorflow as tf

from retinanet_tpu.estimator import train_and_evaluate
from retinanet_tpu.task import configurables, mlperf_log


def summarize_run() -> list[str]:
    """Returns the counts and shapes of the run that gin configures, one line each.

    Reads no data and starts no device.

    Raises:
      UserError: The settings contradict each other.
    """
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    eval_spec = run.eval_spec if run.plan.evaluate_during_training else None
    train_and_evaluate.check_intervals(run.estimator, run.train_spec, eval_spec)
    mlperf_log.check_settings(run, eval_spec)
    recipe = run.recipe
    recipe.check_losses()
    network = run.make_network()
    rate = run.update_fn(network).learning_rate
    steps = [run.plan.max_steps * quarter // 4 for quarter in range(5)]
    height, width = recipe.image_size
    grids = recipe.anchors.grid_sizes(recipe.image_size)
    num_per_cell = recipe.anchors.num_per_cell
    num_anchors = sum(rows * columns for rows, columns in grids) * num_per_cell
    num_logits = num_per_cell * recipe.num_classes
    return [
        *recipe.summarize_network(network),
        "Learning rate: " + ", ".join(f"{float(rate(s)):.4g} at {s:,}" for s in steps),
        f"Images: uint8 [{run.plan.batch_size}, {height}, {width}, 3]",
        f"Anchors: {num_anchors:,}",
        *(
            f"Class logits of P{level}: {rows} x {columns} x {num_logits}"
            for level, (rows, columns) in zip(recipe.anchors.levels, grids, strict=True)
        ),
    ]
