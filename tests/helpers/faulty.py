"""Runs a command of the package in a process where something goes wrong.

  python faulty.py FAULT retinanet_tpu.evaluate --flags…

killed_before_record  SIGKILL when everything of a score is written but its line
full_disk             the first 3 writings of eval.jsonl find no space
clock_jumps           the wall clock is a day early, right or a day late at each look
"""

import os
import random
import runpy
import signal
import sys
import time

import tensorflow as tf

from retinanet_tpu.estimator import files, summaries


def killed_before_record():
    write_whole = files.write_whole

    def kill(path, text):
        if path.endswith(summaries.EVALUATIONS):
            os.kill(os.getpid(), signal.SIGKILL)
        write_whole(path, text)

    files.write_whole = kill


def full_disk():
    write_whole, failures = files.write_whole, [None] * 3

    def fail(path, text):
        if path.endswith(summaries.EVALUATIONS) and failures:
            failures.pop()
            raise tf.errors.ResourceExhaustedError(None, None, "No space left")
        write_whole(path, text)

    files.write_whole = fail


def clock_jumps():
    right, day = time.time, 86400
    time.time = lambda: right() + random.choice([-day, 0, day])


if __name__ == "__main__":
    fault, module = sys.argv[1:3]
    {f.__name__: f for f in (killed_before_record, full_disk, clock_jumps)}[fault]()
    sys.argv = [module, *sys.argv[3:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
