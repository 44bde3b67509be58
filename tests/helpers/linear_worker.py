"""What one of several workers does with the linear model; see worker.py.

  python worker.py 2 linear_worker.py MODEL_DIR

Prints what it finds as lines of JSON, for tests/estimator/test_workers.py.
"""

import json
import sys

import tensorflow as tf

import linear
from retinanet_tpu.estimator import spec, train_and_evaluate


def say(**found):
    print(json.dumps(found), flush=True)


def input_fn(params):
    """Deals the examples of each global batch out to the replicas of the workers."""
    context, size = params["context"], params["batch_size"]
    mine = context.num_of_replicas_per_host * size
    batches = tf.data.Dataset.from_tensor_slices(linear.examples()).repeat()
    batches = batches.batch(mine, drop_remainder=True)
    first = context.first_step * context.num_hosts + context.current_host
    return batches.skip(first).shard(context.num_hosts, 0).unbatch().batch(size)


def refusal(fn, *args, **kwargs):
    """Returns the sentence of the ValueError that a call ends in."""
    try:
        fn(*args, **kwargs)
    except ValueError as error:
        return str(error)
    return None


def main(model_dir):
    runner = linear.make_estimator(model_dir, num_replicas=2)
    team = runner.workers
    say(count=team.count, index=team.index, is_chief=team.is_chief)
    say(gathered=team.gather(10 + team.index).tolist())
    say(any=[team.any_worker(team.index == 1), team.any_worker(False)])
    say(
        reason=team.synchronized_stop_reason(lambda: "enough" if team.index else None)()
    )
    say(different=refusal(team.check_same, team.index, "The index"))
    train_spec = spec.TrainSpec(input_fn, 12)
    eval_spec = spec.EvalSpec(linear.eval_input_fn)
    run = train_and_evaluate.train_and_evaluate
    say(scoring=refusal(run, runner, train_spec, eval_spec))
    run(runner, train_spec, None)
    # What only the chief has seen written is no run to go on with.
    say(elsewhere=refusal(run, runner, train_spec, None))


if __name__ == "__main__":
    main(sys.argv[1])
