"""Client of the tf.data service: batches that other machines make.

A dispatcher distributes the work among workers. `retinanet-tpu data_service` starts
both. The workers read the record files themselves, so they need them under the same
paths as the consumers.
"""

import socket
import urllib.parse

import tensorflow as tf

from retinanet_tpu import errors

_CONNECT_SECS = 10
_EXAMPLE = "grpc://HOST:5050"


def parse_address(address: str) -> tuple[str, int]:
    """Returns host and port of a dispatcher's address.

    Args:
      address: The address, grpc://HOST:PORT.

    Raises:
      UserError: The address has another form.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        host = parts.hostname
        port = parts.port
        has_form = address == f"grpc://{parts.netloc}"
    except (AttributeError, TypeError, ValueError):  # Not a string, or an invalid port.
        host, port, has_form = None, None, False
    if not has_form or not host or not port:
        raise errors.UserError(
            f"DATA_SERVICE_ADDRESS is {address!r}; it must be the dispatcher's "
            f"'{_EXAMPLE}', as retinanet-tpu data_service logs it, or None."
        )
    return host, port


def connect(address: str) -> str:
    """Connects to a dispatcher and returns this machine's address.

    TensorFlow itself would retry for an hour before it reports an error.

    Args:
      address: The address of the dispatcher, grpc://HOST:PORT.

    Returns:
      The IP address of this machine, as the dispatcher sees it.

    Raises:
      UserError: Nothing answers within 10 s, or the address has another form.
    """
    host, port = parse_address(address)
    try:
        with socket.create_connection((host, port), _CONNECT_SECS) as connection:
            return connection.getsockname()[0]
    except OSError as cause:
        raise errors.UserError(
            f"No dispatcher of the tf.data service answers at {address} ({cause}); "
            f"start it with retinanet-tpu data_service --role=dispatcher --port={port} "
            "and start workers for it, or correct DATA_SERVICE_ADDRESS (None disables "
            "the service)."
        ) from cause


def distribute(batches: tf.data.Dataset, address: str) -> tf.data.Dataset:
    """Returns the batches as the workers make them, in the order they are ready.

    Each element of the dataset's source goes to one worker, once. If a worker dies, its
    open elements are lost; the other workers continue, and new ones may join. Without
    workers the reader waits.

    Args:
      batches: The dataset that the workers execute. Each iterator over the result
        executes it anew.
      address: The address of a dispatcher that `connect` accepted.
    """
    # Uncompressed: noisy images hardly shrink, and the workers lack CPU time.
    return batches.apply(
        tf.data.experimental.service.distribute(
            tf.data.experimental.service.ShardingPolicy.DYNAMIC,
            address,
            compression=None,
        )
    )
