"""Trains the linear model as one of several workers; see worker.py.

  python worker.py 2 linear_worker.py MODEL_DIR

Prints its results as lines of JSON, for tests/estimator/cluster/test_worker_group.py.
"""

import json
import sys

import tensorflow as tf

import linear
from retinanet_tpu.estimator import spec, train_and_evaluate


def report(**values):
    print(json.dumps(values), flush=True)


def input_fn(params):
    """Distributes the examples of each global batch over all replicas."""
    context, size = params["context"], params["batch_size"]
    worker_batch_size = context.num_of_replicas_per_host * size
    batches = tf.data.Dataset.from_tensor_slices(linear.examples()).repeat()
    batches = batches.batch(worker_batch_size, drop_remainder=True)
    first = context.first_step * context.num_hosts + context.current_host
    shares = batches.skip(first).shard(context.num_hosts, 0).unbatch()
    return shares.batch(size, drop_remainder=True)


def refusal(fn, *args, **kwargs):
    """Returns the message of the ValueError that a call raises, or None."""
    try:
        fn(*args, **kwargs)
    except ValueError as error:
        return str(error)
    return None


def main(model_dir):
    runner = linear.make_estimator(model_dir, num_replicas=2)
    team = runner.workers
    report(count=team.count, index=team.index, is_chief=team.is_chief)
    report(gathered=team.gather(10 + team.index).tolist())
    report(any=[team.any_worker(team.index == 1), team.any_worker(False)])
    report(
        reason=team.synchronized_stop_reason(lambda: "enough" if team.index else None)()
    )
    report(different=refusal(team.check_same, team.index, "The index"))
    train_spec = spec.TrainSpec(input_fn, 12)
    eval_spec = spec.EvalSpec(linear.eval_input_fn)
    run = train_and_evaluate.train_and_evaluate
    report(evaluation=refusal(run, runner, train_spec, eval_spec))
    run(runner, train_spec, None)
    # Only the chief can see its checkpoints, so the run cannot be resumed.
    report(elsewhere=refusal(run, runner, train_spec, None))


if __name__ == "__main__":
    main(sys.argv[1])
