"""The tf.data service: batches made on other machines.

A dispatcher hands out work and workers do it; retinanet-tpu data_service starts both.
The workers read the records themselves: they need them under the consumers' paths.
"""

import socket
import urllib.parse

import tensorflow as tf

from retinanet_tpu import errors

_CONNECT_SECS = 10
_EXAMPLE = "grpc://HOST:5050"


def parse_address(address: str) -> tuple[str, int]:
    """Returns host and port of a dispatcher's address.

    Raises:
      UserError: it is not of the form grpc://HOST:PORT.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        is_whole = address == f"grpc://{parts.netloc}" and parts.hostname and parts.port
    except (AttributeError, TypeError, ValueError):  # not a string, or no such port
        is_whole = False
    if not is_whole:
        raise errors.UserError(
            f"DATA_SERVICE_ADDRESS is {address!r}; it must be the dispatcher's "
            f"'{_EXAMPLE}', as retinanet-tpu data_service logs it, or None."
        )
    return parts.hostname, parts.port


def reach(address: str) -> str:
    """Connects to a dispatcher, for TensorFlow itself would try for an hour.

    Args:
      address: grpc://HOST:PORT.

    Returns:
      This machine's IP address as the dispatcher sees it.

    Raises:
      UserError: nothing answers within 10 s, or the address is no address.
    """
    host, port = parse_address(address)
    try:
        with socket.create_connection((host, port), _CONNECT_SECS) as connection:
            return connection.getsockname()[0]
    except OSError as cause:
        raise errors.UserError(
            f"No dispatcher of the tf.data service answers at {address} ({cause}); "
            f"start it with retinanet-tpu data_service --role=dispatcher --port={port}"
            " and workers beside it, or correct DATA_SERVICE_ADDRESS (None does "
            "without)."
        ) from cause


def distribute(batches: tf.data.Dataset, address: str) -> tf.data.Dataset:
    """Returns the batches as the workers make them, in the order they are ready.

    Each element of the dataset's source goes to one worker, once. What comes of it is
    lost where that worker dies; the others go on, and new ones may join. Without any,
    the reader waits.

    Args:
      batches: what to make; each iterator over the result has all of it made anew.
      address: of the dispatcher, reached before.
    """
    # Uncompressed: noise hardly shrinks, and the workers' CPUs are what is short.
    return batches.apply(
        tf.data.experimental.service.distribute(
            tf.data.experimental.service.ShardingPolicy.DYNAMIC,
            address,
            compression=None,
        )
    )
