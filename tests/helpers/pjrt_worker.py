"""Trains the linear model through PJRT as one of several workers.

  python pjrt_worker.py MODEL_DIR MAX_STEPS

Ends as `retinanet_tpu.train` does.
"""

import sys

from absl import logging

import linear
import linear_worker
from retinanet_tpu.estimator import (
    run_config,
    spec,
    tpu_estimator,
    train_and_evaluate,
    waits,
)
from retinanet_tpu.estimator.cluster import preemption, strategy, worker_group

NUM_DEVICES = 2


def make_estimator(model_dir, num_devices):
    """Returns the estimator on the first CPU devices of this process."""
    return tpu_estimator.TPUEstimator(
        linear.model_fn,
        model_dir,
        network_fn=lambda params: linear.Linear(),
        update_fn=linear.Descent,
        config=run_config.RunConfig(
            save_checkpoints_steps=4,
            keep_checkpoint_max=None,
            tpu_config=run_config.TPUConfig(iterations_per_loop=4),
        ),
        strategy=strategy.make_strategy(
            "cpu", engine="pjrt", num_devices=num_devices, compilation_cache=""
        ),
        train_batch_size=8,
    )


def main(model_dir, max_steps):
    logging.set_verbosity(logging.INFO)
    try:
        with preemption.PreemptionListener() as listener:
            runner = make_estimator(model_dir, NUM_DEVICES)
            train_and_evaluate.train_and_evaluate(
                runner,
                spec.TrainSpec(linear_worker.input_fn, int(max_steps)),
                None,
                stop_reason=listener.reason,
            )
            runner.workers.close()
    except (preemption.Preempted, worker_group.LostError) as error:
        print(error, flush=True)
        waits.leave(42)


if __name__ == "__main__":
    main(*sys.argv[1:])
