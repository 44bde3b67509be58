"""Runs a command of the package in a process with an injected fault.

  python faulty.py FAULT retinanet_tpu.evaluate --flags…

killed_before_record  SIGKILL after all results of an evaluation are written except
                      the line of eval.jsonl
full_disk             the first 3 writes of eval.jsonl fail: no space is left
clock_jumps           each reading of the wall clock is a day early, right or a day late
read_only             all writes fail as long as MODEL_DIR.read_only exists
data_stall            the same; also, the input stops after 20 batches and creates the
                      file MODEL_DIR.stalled
"""

import os
import pathlib
import random
import runpy
import signal
import sys
import time

import tensorflow as tf

from retinanet_tpu.data import pipeline
from retinanet_tpu.estimator import summaries
from retinanet_tpu.estimator.model_dir import checkpoints, files


def killed_before_record():
    write_whole = files.write_whole

    def kill(path, text):
        if path.endswith(summaries.EVALUATIONS):
            os.kill(os.getpid(), signal.SIGKILL)
        write_whole(path, text)

    files.write_whole = kill


def full_disk():
    write_whole = files.write_whole
    failures = [None] * 3

    def fail(path, text):
        if path.endswith(summaries.EVALUATIONS) and failures:
            failures.pop()
            raise tf.errors.ResourceExhaustedError(None, None, "No space left")
        write_whole(path, text)

    files.write_whole = fail


def clock_jumps():
    true_time = time.time
    day_secs = 86400
    time.time = lambda: true_time() + random.choice([-day_secs, 0, day_secs])


def data_stall():
    make_train_dataset = pipeline.make_train_dataset

    def wait():
        pathlib.Path(f"{_model_dir()}.stalled").touch()
        time.sleep(1e6)

    def pause(*batch):
        tf.py_function(wait, [], [])
        return batch

    def stall(*args, **kwargs):
        data = make_train_dataset(*args, **kwargs)
        return data.take(20).concatenate(data.map(pause))

    pipeline.make_train_dataset = stall
    read_only()


def read_only():
    files.write_whole = _unless_read_only(files.write_whole)
    checkpoints.save = _unless_read_only(checkpoints.save)


def _unless_read_only(write):
    def checked(*args):
        if os.path.exists(f"{_model_dir()}.read_only"):
            raise tf.errors.PermissionDeniedError(None, None, "Read-only system")
        return write(*args)

    return checked


def _model_dir():
    (flag,) = [x for x in sys.argv if x.startswith("--model_dir=")]
    return flag.partition("=")[2]


if __name__ == "__main__":
    fault, module = sys.argv[1:3]
    inject_fns = (killed_before_record, full_disk, clock_jumps, data_stall, read_only)
    {fn.__name__: fn for fn in inject_fns}[fault]()
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
