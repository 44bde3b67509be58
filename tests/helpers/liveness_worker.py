"""A process with a monitor: python liveness_worker.py INDEX COUNT.

It gathers numbers by its standard streams, and obeys commands that it reads there.
"""

import ctypes
import os
import sys
import threading

import numpy as np

from retinanet_tpu.estimator.cluster import liveness


def gather(number):
    print(number, flush=True)
    return np.array([float(text) for text in input().split()])


def main(index, count):
    liveness.delay_abort()
    monitor = liveness.Liveness(
        count, index, "127.0.0.1", gather, grace_secs=0.2, connect_secs=30
    )
    print("ready", flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "close":
            monitor.close()
            return 0
        if command == "fail":
            monitor.fail()
            return 1
        if command == "abort":  # As jax does, in a thread of its own.
            threading.Thread(target=ctypes.CDLL(None).abort, daemon=True).start()
            print("aborting", flush=True)
    threading.Event().wait()  # Until it is killed, or ended by the monitor.


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1]), int(sys.argv[2])))
