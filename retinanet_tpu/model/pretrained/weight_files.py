"""Reads files of pretrained weights as tensors by their names in the file."""

import contextlib
import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors

KERAS_SUFFIXES = (".h5", ".hdf5", ".keras")
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
SAFETENSORS_SUFFIX = ".safetensors"
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


class KerasApplication(NamedTuple):
    """A function of keras.applications.

    Attributes:
      name: The name of the function.
      num_convs: The number of its kernels of rank 4, without a top.
      num_top_convs: The number of those of its top.
      settings: Its arguments, such as {"alpha": 0.75}.
    """

    name: str
    num_convs: int
    num_top_convs: int = 0
    settings: Mapping[str, float] = {}

    def make(self, **kwargs: Any) -> "tf.keras.Model":
        """Returns the model.

        Args:
          **kwargs: More arguments, such as weights and include_top.
        """
        return getattr(tf.keras.applications, self.name)(**self.settings, **kwargs)


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
      UserError: torch is not installed, the file contains no state dict with kernels,
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
        if not isinstance(group, Mapping):
            continue
        tensors = {n: t for n, t in group.items() if isinstance(t, torch.Tensor)}
        if any(tensor.ndim == 4 for tensor in tensors.values()):
            return {
                str(name): (t.float() if t.is_floating_point() else t).numpy()
                for name, t in tensors.items()
            }
    keys = [str(key) for key in saved][:4] if groups else type(saved).__name__
    raise errors.UserError(
        f"{path} contains {keys}, no state dict with the kernels of convolutions."
    )


def read_keras(
    path: str, applications: Sequence[KerasApplication]
) -> dict[str, np.ndarray]:
    """Returns the variables of a Keras application as "layer/variable".

    A file does not contain the names of layers in every format. So the application is
    built, and loads the file.

    Args:
      path: The file, with or without the top: .weights.h5 or .keras of Keras 3, or .h5
        of weights or of a model.
      applications: The possible applications. The first with as many convolutions as
        the file is loaded.
    Raises:
      UserError: The file is of another model.
    """
    with _local(path) as file:
        shapes = _keras_shapes(file, path)
        kernels = [shape for shape in shapes if len(shape) == 4]
        application = _with_convs(len(kernels), applications, path)
        dense = [shape for shape in shapes if len(shape) == 2]
        classes = dense[0][1] if dense else 1000
        has_top = bool(dense)
        if application.num_top_convs and len(kernels) > application.num_convs:
            # The classifier has more input channels than any other convolution.
            has_top, classes = True, max(kernels, key=lambda shape: shape[2])[3]
        model = application.make(weights=None, include_top=has_top, classes=classes)
        try:
            model.load_weights(file)
        except (ValueError, KeyError) as error:
            raise errors.UserError(
                f"{path} has the {len(kernels)} convolutions of "
                f"keras.applications.{application.name}, but is another model: {error}"
            ) from error
    return keras_tensors(model)


def _with_convs(
    number: int, applications: Sequence[KerasApplication], path: str
) -> KerasApplication:
    """Returns the first application with this number of convolutions."""
    for application in applications:
        top = application.num_top_convs
        if number in (application.num_convs, application.num_convs + top):
            return application
    known = {application.name: application.num_convs for application in applications}
    raise errors.UserError(
        f"{path} has {number} convolutions; of keras.applications, "
        f"{', '.join(f'{name} has {count}' for name, count in known.items())}."
    )


def download_keras(application: KerasApplication) -> dict[str, np.ndarray]:
    """Returns Keras's ImageNet weights, which its loader downloads and caches.

    Args:
      application: The model.
    Raises:
      UserError: Keras cannot download them.
    """
    try:
        model = application.make(weights="imagenet", include_top=False)
    except Exception as error:  # The loader raises a bare Exception if a URL fails.
        raise errors.UserError(
            f"Keras could not download its {application.name} ({error}); on a machine "
            "without a network, set BACKBONE_CHECKPOINT to the .h5 file it asked for."
        ) from error
    return keras_tensors(model)


def keras_tensors(model: "tf.keras.Model") -> dict[str, np.ndarray]:
    """Returns the variables of a Keras model as "layer/variable".

    Args:
      model: The model, built.
    """
    return {
        f"{layer.name}/{variable.name}": variable.numpy()
        for layer in model.layers
        for variable in layer.weights
    }


def _keras_shapes(file: str, path: str) -> list[tuple[int, ...]]:
    """Returns the shapes of all variables of a model's file."""
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
    return shapes


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
