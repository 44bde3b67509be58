"""What build_engine.py asks of TensorRT and CUDA.

Both come as arguments: `import tensorrt`, and `cuda.bindings.runtime` as cudart.
"""

import time
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors

_WARM_UP_RUNS = 20  # Clocks rise and caches fill.


class DeviceMemory:
    """A piece of the GPU's memory, until the process ends."""

    def __init__(self, cudart: ModuleType, num_bytes: int):
        """Takes the memory, with cuda.bindings.runtime."""
        self._cudart = cudart
        self.address = int(_checked(cudart, *cudart.cudaMalloc(num_bytes)))

    def write(self, array: np.ndarray) -> None:
        """Copies an array there."""
        array = np.ascontiguousarray(array)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        copied = self._cudart.cudaMemcpy(
            self.address, array.ctypes.data, array.nbytes, kind
        )
        _checked(self._cudart, *copied)


def device_name(cudart: ModuleType) -> str:
    """Returns what the GPU in use is called.

    Raises:
      UserError: there is none.
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
      tensorrt: has that class.
      memory: room for a batch.
      batches: uint8 [B, H, W, 3] each.
      batch_size: B.
      cache: file to read ranges from if it exists, else to write them to; None for
        neither.
    """
    remaining = iter(batches)

    # In here, because only now is there a class to extend.
    class Calibrator(tensorrt.IInt8EntropyCalibrator2):
        def get_batch_size(self):
            return batch_size

        def get_batch(self, names):
            del names  # There is one input.
            batch = next(remaining, None)
            if batch is None:
                return []
            memory.write(batch.astype(np.float32))
            return [memory.address]

        def read_calibration_cache(self):
            if not cache or not tf.io.gfile.exists(cache):
                return None
            with tf.io.gfile.GFile(cache, "rb") as file:
                return file.read()

        def write_calibration_cache(self, content):
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
    calibrator_fn: Callable[[tuple[int, int]], Any],
) -> bytes:
    """Returns an engine.

    Args:
      tensorrt: the module.
      content: of an ONNX file.
      sizes: least, usual and greatest batch.
      precision: one of fp32, fp16, int8.
      workspace_gib: GPU memory that kernels may take.
      calibrator_fn: (H, W) of the input -> calibrator, for int8.
    Raises:
      UserError: TensorRT cannot read the file, or build it.
    """
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    tensorrt.init_libnvinfer_plugins(logger, "")
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(content):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        lines = [f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in found]
        raise errors.UserError("\n  ".join(["TensorRT cannot read the file:", *lines]))
    image_size = tuple(network.get_input(0).shape)[1:3]

    def profile(*batches):
        made = builder.create_optimization_profile()
        made.set_shape(
            network.get_input(0).name, *((batch, *image_size, 3) for batch in batches)
        )
        return made

    config = builder.create_builder_config()
    config.set_memory_pool_limit(
        tensorrt.MemoryPoolType.WORKSPACE, workspace_gib * 2**30
    )
    config.add_optimization_profile(profile(*sizes))
    if precision != "fp32":
        config.set_flag(tensorrt.BuilderFlag.FP16)
        config.set_flag(tensorrt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        _keep_boxes_in_float32(tensorrt, network)
    if precision == "int8":
        config.set_flag(tensorrt.BuilderFlag.INT8)
        config.int8_calibrator = calibrator_fn(image_size)
        config.set_calibration_profile(profile(*[sizes[1]] * 3))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise errors.UserError(
            "TensorRT built no engine; its own messages above say why."
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
    """Returns ms of each run, on noise that is in the GPU's memory already.

    Raises:
      UserError: the engine does not run.
    """
    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(engine_content)
    if engine is None:
        raise errors.UserError(
            "TensorRT does not read its own engine; see its messages."
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
                "The engine does not run; TensorRT's messages say why."
            )
        times.append(1e3 * (time.perf_counter() - start))
    return times[_WARM_UP_RUNS:]


def _keep_boxes_in_float32(tensorrt, network):
    """Fixes the type of all between the last convolutions and the plugin's outputs."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {
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
        waiting += [makers[x.name] for x in inputs if x and x.name in makers]


def _checked(cudart, error, value=None):
    """Returns the value of a call to CUDA, which returns its error first."""
    if error != cudart.cudaError_t.cudaSuccess:
        raise errors.UserError(f"CUDA failed: {error.name}; is there an NVIDIA GPU?")
    return value
