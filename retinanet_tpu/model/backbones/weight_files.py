"""Reads files of ImageNet weights: tensors by the names that they have there."""

import contextlib
import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors

KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
SAFETENSORS_SUFFIX = ".safetensors"
# convolutions, shortcuts' ones too: depth
_KERAS_DEPTHS = {53: 50, 104: 101, 155: 152}
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": tf.bfloat16.as_numpy_dtype,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a .safetensors file; needs no other package.

    Raises:
      UserError: it is damaged or cut short, or has a dtype that NumPy lacks.
    Source: the format's own description: 8 bytes of length, a JSON header, the data.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        data = file.read()
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        return {name: _tensor(data, start, **entry) for name, entry in header.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise errors.UserError(
            f"{path} is no whole .safetensors file ({error!r}); fetch it again."
        ) from error


def _tensor(data, start, *, dtype, shape, data_offsets):
    begin, end = data_offsets
    dtype = np.dtype(_DTYPES[dtype])
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise errors.UserError(f"{shape} {dtype} do not fill bytes {begin} to {end}")
    flat = np.frombuffer(data, dtype, math.prod(shape), start + begin)
    return flat.reshape(shape)


def read_torch(path: str) -> dict[str, np.ndarray]:
    """Returns the state dict of a file of torch.save; runs no code of it.

    The state dict may lie under a key, as training scripts save it ("state_dict").

    Raises:
      UserError: torch is missing; or the file has no state dict of a ResNet, or more
        than tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise errors.UserError(
            f"{path} is read by torch, which is missing: pip install -e '.[torch]', or "
            "take the same weights as .safetensors, which needs no torch."
        ) from error
    with _local(path) as file:
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # Of many kinds: pickle's, zipfile's, its own.
            raise errors.UserError(
                f"{path} cannot be read as a file of tensors only: {error}"
            ) from error
    groups = [saved, *saved.values()] if isinstance(saved, Mapping) else []
    for group in groups:
        if isinstance(group, Mapping) and any(_is_first(name) for name in group):
            return {
                name: value.float().numpy() if value.is_floating_point() else value
                for name, value in group.items()
                if isinstance(value, torch.Tensor)
            }
    keys = [str(key) for key in saved][:4] if groups else type(saved).__name__
    raise errors.UserError(
        f"{path} holds {keys}, no state dict of a ResNet, which has conv1.weight."
    )


def _is_first(name):
    return str(name).endswith("conv1.weight")


def read_keras(path: str) -> dict[str, np.ndarray]:
    """Returns "layer/variable" of a Keras ResNet-50, -101 or -152, with or without top.

    Args:
      path: .weights.h5 or .keras of Keras 3, .h5 of weights or of a model.
    Raises:
      UserError: it is of another model.
    """
    with _local(path) as file:
        depth, has_top, num_classes = _measure(file, path)
        model = _keras_model(
            depth, weights=None, include_top=has_top, classes=num_classes
        )
        try:
            model.load_weights(file)
        except (ValueError, KeyError) as error:
            raise errors.UserError(
                f"{path} has the convolutions of a ResNet-{depth}, but is not "
                f"keras.applications.ResNet{depth}: {error}"
            ) from error
    return keras_tensors(model)


def download_keras(depth: int) -> dict[str, np.ndarray]:
    """Returns Keras's own ImageNet weights, which its loader fetches and caches.

    Raises:
      UserError: there are none of this depth, or they cannot be fetched.
    """
    if depth not in _KERAS_DEPTHS.values():
        raise errors.UserError(
            f"Keras has ImageNet weights of ResNet-50, -101 and -152, not of ResNet-"
            f"{depth}; set ResNet.depth, or give BACKBONE_CHECKPOINT a file of timm's."
        )
    try:
        model = _keras_model(depth, weights="imagenet", include_top=False)
    except Exception as error:  # Its loader raises a bare Exception for a bad URL.
        raise errors.UserError(
            f"Keras could not fetch its ResNet-{depth} ({error}); on a machine without "
            "a network, set BACKBONE_CHECKPOINT to the .h5 file that it wanted."
        ) from error
    return keras_tensors(model)


def keras_tensors(model) -> dict[str, np.ndarray]:
    """Returns the variables of a Keras model as "layer/variable"."""
    return {
        f"{layer.name}/{variable.name}": variable.numpy()
        for layer in model.layers
        for variable in layer.weights
    }


def _keras_model(depth, **kwargs):
    make = getattr(tf.keras.applications, f"ResNet{depth}")
    return make(**kwargs)


def _measure(file, path):
    """Returns depth, whether there is a top, and its classes, of a Keras file."""
    import h5py  # Comes with TensorFlow, for Keras.

    shapes = []
    try:
        with contextlib.ExitStack() as stack:
            if zipfile.is_zipfile(file):
                archive = stack.enter_context(zipfile.ZipFile(file))
                file = io.BytesIO(archive.read("model.weights.h5"))
            root = stack.enter_context(h5py.File(file, "r"))
            for group in ("model_weights", "layers"):  # Not an optimizer's.
                root = root.get(group, root)
            root.visititems(lambda _, item: shapes.append(getattr(item, "shape", ())))
    except (OSError, KeyError) as error:
        raise errors.UserError(f"{path} is no Keras file: {error}") from error
    num_convs = sum(len(shape) == 4 for shape in shapes)
    tops = [shape for shape in shapes if len(shape) == 2]
    if num_convs not in _KERAS_DEPTHS:
        raise errors.UserError(
            f"{path} has {num_convs} convolutions; keras.applications.ResNet50, 101 "
            f"and 152 have {', '.join(map(str, _KERAS_DEPTHS))}."
        )
    return _KERAS_DEPTHS[num_convs], bool(tops), tops[0][1] if tops else 1000


@contextlib.contextmanager
def _local(path: str) -> Iterator[str]:
    """Gives the path of a copy on the disk, for libraries that know no gs://."""
    if "://" not in path:
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        copy = os.path.join(directory, path.rpartition("/")[2])
        tf.io.gfile.copy(path, copy)
        yield copy
