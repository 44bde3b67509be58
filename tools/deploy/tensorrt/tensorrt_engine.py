"""Calls of TensorRT and CUDA for build_engine.py.

Both modules are arguments: `tensorrt`, and `cuda.bindings.runtime` as cudart. Tests
pass fakes.
"""

import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors

_WARM_UP_RUNS = 20  # GPU clocks and caches need some runs.

CalibratorFn = Callable[[tuple[int, int]], Any]  # (height, width) -> calibrator


class DeviceMemory:
    """A buffer in the GPU's memory, which is freed when the process ends."""

    def __init__(self, cudart: ModuleType, num_bytes: int):
        """Allocates the buffer.

        Args:
          cudart: The module cuda.bindings.runtime.
          num_bytes: The size of the buffer.
        """
        self._cudart = cudart
        self.address = int(_checked(cudart, *cudart.cudaMalloc(num_bytes)))

    def write(self, array: np.ndarray) -> None:
        """Copies an array to the buffer.

        Args:
          array: The array, at most as large as the buffer.
        """
        array = np.ascontiguousarray(array)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        status = self._cudart.cudaMemcpy(
            self.address, array.ctypes.data, array.nbytes, kind
        )
        _checked(self._cudart, *status)


def device_name(cudart: ModuleType) -> str:
    """Returns the name of the GPU.

    Args:
      cudart: The module cuda.bindings.runtime.

    Raises:
      UserError: There is no GPU.
    """
    properties = _checked(cudart, *cudart.cudaGetDeviceProperties(0))
    return properties.name.decode().rstrip("\0")


def make_calibrator(
    tensorrt: ModuleType,
    memory: DeviceMemory,
    batches: Iterable[np.ndarray],
    *,
    batch_size: int,
    cache: str | None,
) -> Any:
    """Returns an IInt8EntropyCalibrator2.

    Args:
      tensorrt: The module.
      memory: A buffer for a float32 batch.
      batches: The batches, uint8 [B, H, W, 3].
      batch_size: The batch size B.
      cache: The file of activation ranges. It is read if it exists, else written; None
        for neither.
    """
    remaining = iter(batches)

    # The class is local, because its base class comes from an argument.
    class Calibrator(tensorrt.IInt8EntropyCalibrator2):
        def get_batch_size(self) -> int:
            return batch_size

        def get_batch(self, names: list[str]) -> list[int]:
            del names  # There is a single input.
            batch = next(remaining, None)
            if batch is None:
                return []
            memory.write(batch.astype(np.float32))
            return [memory.address]

        def read_calibration_cache(self) -> bytes | None:
            if not cache or not tf.io.gfile.exists(cache):
                return None
            with tf.io.gfile.GFile(cache, "rb") as file:
                return file.read()

        def write_calibration_cache(self, content: memoryview) -> None:
            if cache:
                with tf.io.gfile.GFile(cache, "wb") as file:
                    file.write(bytes(content))

    return Calibrator()


def build(
    tensorrt: ModuleType,
    content: bytes,
    *,
    sizes: tuple[int, int, int],
    precision: str,
    workspace_gib: int,
    calibrator_fn: CalibratorFn,
) -> bytes:
    """Returns a serialized engine.

    Args:
      tensorrt: The module.
      content: The content of an ONNX file.
      sizes: The smallest, usual and largest batch.
      precision: One of fp32, fp16 and int8.
      workspace_gib: The largest workspace of the kernels, GiB.
      calibrator_fn: A function that returns a calibrator for int8.

    Raises:
      UserError: TensorRT cannot read the file or build the engine.
    """
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    tensorrt.init_libnvinfer_plugins(logger, "")
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(content):
        parser_errors = [parser.get_error(i) for i in range(parser.num_errors)]
        lines = [
            f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in parser_errors
        ]
        raise errors.UserError("\n  ".join(["TensorRT cannot read the file:", *lines]))
    image_size = tuple(network.get_input(0).shape)[1:3]

    def make_profile(*batch_sizes: int) -> Any:
        profile = builder.create_optimization_profile()
        shapes = [(batch_size, *image_size, 3) for batch_size in batch_sizes]
        profile.set_shape(network.get_input(0).name, *shapes)
        return profile

    config = builder.create_builder_config()
    config.set_memory_pool_limit(
        tensorrt.MemoryPoolType.WORKSPACE, workspace_gib * 2**30
    )
    config.add_optimization_profile(make_profile(*sizes))
    if precision != "fp32":
        config.set_flag(tensorrt.BuilderFlag.FP16)
        config.set_flag(tensorrt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        _keep_boxes_in_float32(tensorrt, network)
    if precision == "int8":
        config.set_flag(tensorrt.BuilderFlag.INT8)
        config.int8_calibrator = calibrator_fn(image_size)
        config.set_calibration_profile(make_profile(*[sizes[1]] * 3))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise errors.UserError(
            "TensorRT built no engine; its messages above contain the reason."
        )
    return bytes(engine)


def run_times(
    tensorrt: ModuleType,
    cudart: ModuleType,
    engine_content: bytes,
    *,
    batch_size: int,
    num_runs: int,
) -> list[float]:
    """Returns the time of each run in ms. The input is noise in the GPU's memory.

    Args:
      tensorrt: The module.
      cudart: The module cuda.bindings.runtime.
      engine_content: The serialized engine.
      batch_size: The number of images in a batch.
      num_runs: The number of timed runs, after a warm-up.

    Raises:
      UserError: The engine cannot be loaded or fails.
    """
    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(engine_content)
    if engine is None:
        raise errors.UserError(
            "TensorRT cannot load its own engine; its messages contain the reason."
        )
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    input_name = next(
        name
        for name in names
        if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT
    )
    shape = (batch_size, *tuple(engine.get_tensor_shape(input_name))[1:])
    context.set_input_shape(input_name, shape)
    memories = {}
    for name in names:
        dtype = np.dtype(tensorrt.nptype(engine.get_tensor_dtype(name)))
        num_bytes = int(np.prod(tuple(context.get_tensor_shape(name)))) * dtype.itemsize
        memories[name] = DeviceMemory(cudart, num_bytes)
    noise = np.random.default_rng(0).integers(0, 256, shape)
    memories[input_name].write(noise.astype(np.float32))
    addresses = [memories[name].address for name in names]
    times = []
    for _ in range(_WARM_UP_RUNS + num_runs):
        start = time.perf_counter()
        if not context.execute_v2(addresses):
            raise errors.UserError(
                "The engine failed; TensorRT's messages contain the reason."
            )
        times.append(1e3 * (time.perf_counter() - start))
    return times[_WARM_UP_RUNS:]


def _keep_boxes_in_float32(tensorrt: ModuleType, network: Any) -> None:
    """Sets all layers from the last convolutions to the plugin's outputs to float32."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    producers = {
        layer.get_output(i).name: layer
        for layer in layers
        for i in range(layer.num_outputs)
    }
    waiting = [x for x in layers if x.type == tensorrt.LayerType.PLUGIN_V2]
    seen = set()
    while waiting:
        layer = waiting.pop()
        if layer.name in seen or layer.type == tensorrt.LayerType.CONVOLUTION:
            continue
        seen.add(layer.name)
        for i in range(layer.num_outputs):
            if layer.get_output(i).dtype == tensorrt.float32:
                layer.precision = tensorrt.float32
                layer.set_output_type(i, tensorrt.float32)
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        waiting += [producers[x.name] for x in inputs if x and x.name in producers]


def _checked(cudart: ModuleType, error: Any, value: Any = None) -> Any:
    """Returns the value of a call to CUDA, or raises its error."""
    if error != cudart.cudaError_t.cudaSuccess:
        raise errors.UserError(
            f"CUDA failed: {error.name}; check that the machine has an NVIDIA GPU."
        )
    return value
