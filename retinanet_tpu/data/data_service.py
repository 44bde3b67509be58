"""The tf.data service: batches made on other machines.

A dispatcher hands out work and workers do it; tools/start_data_service.py starts both.
The workers read the records themselves: they need them under the consumers' paths.
"""

import socket
import urllib.parse
from typing import NamedTuple

import tensorflow as tf

_CONNECT_SECS = 10
_EXAMPLE = "grpc://HOST:5050"


class Service(NamedTuple):
    """A running service, and the consumers that share one pass over the data."""

    address: str  # of the dispatcher, grpc://HOST:PORT
    job: str  # the same on all hosts of a run, and of no other run


def parse_address(address: str) -> tuple[str, int]:
    """Returns host and port of a dispatcher's address.

    Raises:
      ValueError: it is not of the form grpc://HOST:PORT.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        is_whole = address == f"grpc://{parts.netloc}" and parts.hostname and parts.port
    except (AttributeError, TypeError, ValueError):  # not a string, or no such port
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"DATA_SERVICE_ADDRESS is {address!r}; it must be the dispatcher's "
            f"'{_EXAMPLE}', as tools/start_data_service.py logs it, or None."
        )
    return parts.hostname, parts.port


def reach(address: str) -> str:
    """Connects to a dispatcher, for TensorFlow itself would try for an hour.

    Args:
      address: grpc://HOST:PORT.

    Returns:
      This machine's IP address as the dispatcher sees it.

    Raises:
      ValueError: nothing answers within 10 s, or the address is no address.
    """
    host, port = parse_address(address)
    try:
        with socket.create_connection((host, port), _CONNECT_SECS) as connection:
            return connection.getsockname()[0]
    except OSError as cause:
        raise ValueError(
            f"No dispatcher of the tf.data service answers at {address} ({cause}); "
            f"start it with tools/start_data_service.py --role=dispatcher --port={port}"
            " and workers beside it, or correct DATA_SERVICE_ADDRESS (None does "
            "without)."
        ) from cause


def distribute(batches: tf.data.Dataset, service: Service) -> tf.data.Dataset:
    """Returns the batches as the workers make them, in the order they are ready.

    Each element of the dataset's source goes to one worker, once. What a worker has in
    hand when it dies is lost.

    Args:
      batches: what to make; the same from all consumers of the job.
      service: where, reached before; the first consumer's batches count for all.
    """
    # Named, for unnamed datasets of several consumers would be jobs of their own.
    # Uncompressed: noise hardly shrinks, and the workers' CPUs are what is short.
    dataset_id = tf.data.experimental.service.register_dataset(
        service.address, batches, compression=None, dataset_id=service.job
    )
    return tf.data.experimental.service.from_dataset_id(
        tf.data.experimental.service.ShardingPolicy.DYNAMIC,
        service.address,
        dataset_id,
        element_spec=batches.element_spec,
        job_name=service.job,
    )
