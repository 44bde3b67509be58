"""Sends requests to an exported SavedModel that would end a server without limits.

  python hostile_client.py DIRECTORY

Prints a JSON object: of each request the CPU seconds, the growth of the process in MB
and the error. The last request is valid.
"""

import io
import json
import resource
import struct
import sys
import time

import numpy as np
import PIL.Image
import tensorflow as tf


def _file(image_format, side=8, **options):
    file = io.BytesIO()
    PIL.Image.new("L", (side, side)).save(file, image_format, **options)
    return file.getvalue()


def _jpeg_of(side):
    encoded = bytearray(_file("JPEG"))
    place = encoded.index(b"\xff\xc0") + 5
    encoded[place : place + 4] = struct.pack(">HH", side, side)
    return bytes(encoded)


def _requests():
    """Yields name, signature and inputs of each request."""
    small, large = _file("PNG"), _jpeg_of(12_000)
    for name, files in (("many", [small] * 10_000), ("large", [small, large])):
        yield f"{name} files", "image_bytes", {"image_bytes": files}
        features = [tf.train.BytesList(value=[file]) for file in files]
        examples = [_example(feature) for feature in features]
        yield f"{name} examples", "tf_example", {"examples": examples}
    yield "PNG", "image_bytes", {"image_bytes": [_file("PNG", side=8_000)]}
    yield "GIF", "image_bytes", {"image_bytes": [_file("GIF")]}
    pixels = np.zeros([10_000, 1, 1, 3], np.uint8)
    yield "many images", "images", {"images": pixels}
    line = np.zeros([1, 60_000_000, 3], np.uint8)
    yield "large images", "images", {"images": line[None]}
    yield "good", "image_bytes", {"image_bytes": [small, small]}


def _example(values):
    feature = {"image/encoded": tf.train.Feature(bytes_list=values)}
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def _peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main(directory: str) -> None:
    """Sends the requests one after the other."""
    model, result = tf.saved_model.load(directory), {}
    for name, signature, inputs in _requests():
        tensors = {key: tf.constant(value) for key, value in inputs.items()}
        before_mb, start_secs, error = _peak_mb(), time.process_time(), ""
        try:
            model.signatures[signature](**tensors)
        except tf.errors.OpError as raised:
            error = f"{type(raised).__name__}: {raised.message}"
        secs = time.process_time() - start_secs
        result[name] = (secs, _peak_mb() - before_mb, error)
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1])
