"""Reads files of pretrained weights as tensors by their names in the file."""

import contextlib
import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors

KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
SAFETENSORS_SUFFIX = ".safetensors"
# number of convolutions, including shortcuts: depth
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
    """Returns the tensors of a .safetensors file, without another package.

    Args:
      path: The file.
    Raises:
      UserError: The file is corrupt or truncated, or has a dtype that NumPy lacks.
    Source: the format's description: 8 bytes of length, a JSON header, the data.
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
            f"{path} is no valid .safetensors file ({error!r}); download it again."
        ) from error


def _tensor(
    data: bytes,
    start: int,
    *,
    dtype: str,
    shape: Sequence[int],
    data_offsets: tuple[int, int],
) -> np.ndarray:
    """Returns the tensor that an entry of the header describes."""
    begin, end = data_offsets
    numpy_dtype = np.dtype(_DTYPES[dtype])
    if end - begin != math.prod(shape) * numpy_dtype.itemsize:
        raise errors.UserError(
            f"{shape} {numpy_dtype} do not fill bytes {begin} to {end}"
        )
    flat = np.frombuffer(data, numpy_dtype, math.prod(shape), start + begin)
    return flat.reshape(shape)


def read_torch(path: str) -> dict[str, np.ndarray]:
    """Returns the state dict of a file of torch.save, without running code from it.

    The state dict may be the value of a key, such as "state_dict", as training scripts
    save it.

    Args:
      path: The file.
    Raises:
      UserError: torch is not installed, the file contains no state dict of a ResNet,
        or it contains other objects than tensors.
    """
    try:
        import torch
    except ImportError as error:
        raise errors.UserError(
            f"{path} needs torch, which is missing: pip install -e '.[torch]', or use "
            "the same weights as .safetensors, which do not need torch."
        ) from error
    with _local(path) as file:
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # Errors of pickle, of zipfile and of torch.
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
        f"{path} contains {keys}, no state dict of a ResNet, which has conv1.weight."
    )


def _is_first(name: object) -> bool:
    """Returns whether a key is the name of a ResNet's first kernel."""
    return str(name).endswith("conv1.weight")


def read_keras(path: str) -> dict[str, np.ndarray]:
    """Returns the variables of a Keras ResNet-50, -101 or -152 as "layer/variable".

    Args:
      path: The file, with or without the top: .weights.h5 or .keras of Keras 3, or .h5
        of weights or of a model.
    Raises:
      UserError: The file is of another model.
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


def download_keras(depth: int | None) -> dict[str, np.ndarray]:
    """Returns Keras's ImageNet weights, which its loader downloads and caches.

    Args:
      depth: The depth of the ResNet, or None if it is unknown.
    Raises:
      UserError: Keras has no weights of this depth, or cannot download them.
    """
    if depth is None or depth not in _KERAS_DEPTHS.values():
        raise errors.UserError(
            f"Keras has ImageNet weights of ResNet-50, -101 and -152, not of ResNet-"
            f"{depth}; set ResNet.depth, or BACKBONE_CHECKPOINT to a file of timm."
        )
    try:
        model = _keras_model(depth, weights="imagenet", include_top=False)
    except Exception as error:  # The loader raises a bare Exception if a URL fails.
        raise errors.UserError(
            f"Keras could not download its ResNet-{depth} ({error}); on a machine "
            "without a network, set BACKBONE_CHECKPOINT to the .h5 file it asked for."
        ) from error
    return keras_tensors(model)


def keras_tensors(model: tf.keras.Model) -> dict[str, np.ndarray]:
    """Returns the variables of a Keras model as "layer/variable".

    Args:
      model: The model, built.
    """
    return {
        f"{layer.name}/{variable.name}": variable.numpy()
        for layer in model.layers
        for variable in layer.weights
    }


def _keras_model(depth: int, **kwargs: str | bool | int | None) -> tf.keras.Model:
    """Returns Keras's ResNet of this depth."""
    make = getattr(tf.keras.applications, f"ResNet{depth}")
    return make(**kwargs)


def _measure(file: str, path: str) -> tuple[int, bool, int]:
    """Returns the depth, whether there is a top, and its number of classes."""
    import h5py  # TensorFlow installs it for Keras.

    shapes: list[tuple[int, ...]] = []
    try:
        with contextlib.ExitStack() as stack:
            hdf5: str | io.BytesIO = file
            if zipfile.is_zipfile(file):
                archive = stack.enter_context(zipfile.ZipFile(file))
                hdf5 = io.BytesIO(archive.read("model.weights.h5"))
            root = stack.enter_context(h5py.File(hdf5, "r"))
            for group in ("model_weights", "layers"):  # Not the optimizer's variables.
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
    """Yields the path of a local copy, for libraries that cannot read gs://."""
    if "://" not in path:
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        copy = os.path.join(directory, path.rpartition("/")[2])
        tf.io.gfile.copy(path, copy)
        yield copy
