import ctypes
import enum
import importlib
import sys
import types

import numpy as np
import PIL.Image
import pytest

import repository
import servers
import tool_processes
from retinanet_tpu import errors
from retinanet_tpu.data import transforms

TOOL = repository.ROOT / "tools" / "deploy" / "tensorrt" / "build_engine.py"
SIZE = (64, 48)
MODEL = b"onnx EfficientNMS_TRT"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOL.parent))
    return importlib.import_module(TOOL.stem)


class Errors(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorNoDevice = 100


class FakeCuda:
    """A fake of cuda.bindings.runtime whose GPU memory is in the host."""

    cudaError_t = Errors
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice="to device")

    def __init__(self, error=Errors.cudaSuccess):
        self.error = error
        self.memories = {}

    def cudaGetDeviceProperties(self, device):
        return self.error, types.SimpleNamespace(name=b"Fake GPU\0\0")

    def cudaMalloc(self, num_bytes):
        buffer = ctypes.create_string_buffer(num_bytes)
        self.memories[ctypes.addressof(buffer)] = buffer
        return self.error, ctypes.addressof(buffer)

    def cudaMemcpy(self, target, source, num_bytes, kind):
        assert kind == "to device"
        assert num_bytes <= len(self.memories[target])
        ctypes.memmove(target, source, num_bytes)
        return (self.error,)

    def read(self, address):
        return np.frombuffer(self.memories[address].raw, np.float32)


class Tensor:
    def __init__(self, name, shape, dtype="float32"):
        self.name, self.shape, self.dtype = name, shape, dtype


class Layer:
    def __init__(self, kind, inputs, outputs):
        self.name, self.type = f"layer of {outputs[0].name}", kind
        self.inputs, self.outputs = inputs, outputs
        self.num_inputs, self.num_outputs = len(inputs), len(outputs)
        self.precision, self.output_types = None, {}

    def get_input(self, index):
        return self.inputs[index]

    def get_output(self, index):
        return self.outputs[index]

    def set_output_type(self, index, dtype):
        self.output_types[index] = dtype


def make_network():
    """Returns a network of convolutions, layers that decode boxes, and the plugin."""
    inputs = Tensor("inputs", (-1, *SIZE, 3))
    names = ("early", "features", "deltas", "anchors", "boxes", "scores")
    early, features, deltas, anchors, boxes, scores = (Tensor(n, ()) for n in names)
    shape, count = Tensor("shape", (), "int64"), Tensor("num_detections", (), "int32")
    layers = [
        Layer("activation", [inputs], [early]),
        Layer("convolution", [early], [features]),
        Layer("convolution", [features], [deltas]),
        Layer("shape", [deltas], [shape]),
        Layer("constant", [], [anchors]),
        Layer("elementwise", [deltas, anchors, shape, None], [boxes]),
        Layer("activation", [features], [scores]),
        Layer("plugin", [boxes, scores], [count, Tensor("detection_boxes_yxyx", ())]),
    ]
    return types.SimpleNamespace(
        get_input=lambda index: [inputs][index],
        num_layers=len(layers),
        get_layer=lambda index: layers[index],
        layers={layer.outputs[-1].name: layer for layer in layers},
    )


class FakeTensorRT(types.ModuleType):
    """A fake of TensorRT that records the calls; an engine is the text "engine"."""

    WARNING = "warning"
    float32 = "float32"
    LayerType = types.SimpleNamespace(CONVOLUTION="convolution", PLUGIN_V2="plugin")
    MemoryPoolType = types.SimpleNamespace(WORKSPACE="workspace")
    TensorIOMode = types.SimpleNamespace(INPUT="in", OUTPUT="out")

    def __init__(self, version="10.16.1.11", errors=(), engine=b"engine"):
        super().__init__("tensorrt")
        self.__version__ = version
        self.errors, self.engine = errors, engine
        self.network, self.flags, self.calls = make_network(), [], []
        self.profiles, self.calibrated, self.has_cache = [], [], None
        self.shapes, self.runs, self.int8_calibrator = {}, 0, None
        kinds = ("FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS")
        self.BuilderFlag = types.SimpleNamespace()
        if version < "11":
            self.BuilderFlag = types.SimpleNamespace(**{kind: kind for kind in kinds})
            self.IInt8EntropyCalibrator2 = type("IInt8EntropyCalibrator2", (), {})

    def Logger(self, severity):
        return severity

    Logger.WARNING = "warning"

    def init_libnvinfer_plugins(self, logger, namespace):
        self.calls.append("plugins")

    def Builder(self, logger):
        self.calls.append("builder")
        return self

    def create_network(self, flags):
        assert flags == 0
        return self.network

    def OnnxParser(self, network, logger):
        return types.SimpleNamespace(
            parse=lambda content: content == MODEL and not self.errors,
            num_errors=len(self.errors),
            get_error=lambda index: self.errors[index],
        )

    def create_builder_config(self):
        return self

    def set_memory_pool_limit(self, pool, num_bytes):
        self.calls.append((pool, num_bytes))

    def create_optimization_profile(self):
        return types.SimpleNamespace(set_shape=lambda *a: self.profiles.append(a))

    def add_optimization_profile(self, profile):
        self.calls.append("profile")

    def set_calibration_profile(self, profile):
        self.calls.append("calibration profile")

    def set_flag(self, flag):
        self.flags.append(flag)

    def build_serialized_network(self, network, config):
        if self.int8_calibrator:
            self._calibrate(self.int8_calibrator)
        return self.engine

    def _calibrate(self, calibrator):
        self.has_cache = calibrator.read_calibration_cache()
        while not self.has_cache and (addresses := calibrator.get_batch(["inputs"])):
            shape = (calibrator.get_batch_size(), *SIZE, 3)
            (address,) = addresses
            self.calibrated.append(self.cuda.read(address).reshape(shape).copy())
        if not self.has_cache:
            calibrator.write_calibration_cache(memoryview(b"ranges"))

    def Runtime(self, logger):
        return self

    def deserialize_cuda_engine(self, content):
        return self if content == self.engine else None

    num_io_tensors = 2

    def create_execution_context(self):
        return self

    def get_tensor_name(self, index):
        return ("detection_scores", "inputs")[index]

    def get_tensor_mode(self, name):
        return "in" if name == "inputs" else "out"

    def get_tensor_dtype(self, name):
        return "float32"

    def nptype(self, dtype):
        return np.float32

    def set_input_shape(self, name, shape):
        self.shapes = {name: shape, "detection_scores": (shape[0], 100)}

    def get_tensor_shape(self, name):
        return self.shapes.get(name, (-1, *SIZE, 3))

    def execute_v2(self, addresses):
        sizes = [len(self.cuda.memories[address]) for address in addresses]
        batch = self.shapes["inputs"][0]
        assert sizes == [batch * 100 * 4, batch * SIZE[0] * SIZE[1] * 3 * 4]
        self.runs += 1
        return True


@pytest.fixture
def onnx_path(tmp_path):
    path = tmp_path / "model_tensorrt.onnx"
    path.write_bytes(MODEL)
    return path


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number, size in enumerate([(60, 90), (97, 41), (64, 48), (30, 30), (50, 20)]):
        pixels = servers.images(1, size, seed=number)[0]
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def build(tool, monkeypatch, onnx_path, tmp_path, capsys):
    """Returns a function that runs the tool on fakes and returns its output."""

    def run(tensorrt, cuda=None, **options):
        tensorrt.cuda = cuda or FakeCuda()
        monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", tensorrt.cuda)
        defaults = {
            "onnx": str(onnx_path),
            "output": str(tmp_path / "new" / "model.engine"),
            "precision": "fp32",
            "batch_size": ["1", "2", "8"],
            "calibration_images": None,
            "cache": None,
            "workspace_gib": 3,
            "runs": 5,
        }
        options = types.SimpleNamespace(**(defaults | options))
        monkeypatch.setattr(tool, "FLAGS", options)
        try:
            tool.main()
        except errors.UserError as end:
            return str(end)
        return capsys.readouterr().out

    return run


def test_an_engine_is_built_written_and_timed(build, tmp_path):
    tensorrt = FakeTensorRT()
    printed = build(tensorrt)
    assert (tmp_path / "new" / "model.engine").read_bytes() == b"engine"
    # The plugin must be registered before the parser is created.
    assert tensorrt.calls.index("plugins") < tensorrt.calls.index("builder")
    assert ("workspace", 3 * 2**30) in tensorrt.calls
    shapes = [(batch, *SIZE, 3) for batch in (1, 2, 8)]
    assert tensorrt.profiles == [("inputs", *shapes)]
    assert not tensorrt.flags and tensorrt.int8_calibrator is None
    assert tensorrt.shapes["inputs"] == (2, *SIZE, 3)
    assert tensorrt.runs == 5 + 20
    assert "Fake GPU, TensorRT 10.16.1.11, fp32, batch 2: " in printed
    assert "the median of 5 runs" in printed


def test_half_precision_ends_with_the_convolutions(build):
    tensorrt = FakeTensorRT()
    build(tensorrt, precision="fp16")
    assert set(tensorrt.flags) == {"FP16", "PREFER_PRECISION_CONSTRAINTS"}
    layers = tensorrt.network.layers
    fixed = {name for name, layer in layers.items() if layer.precision == "float32"}
    assert fixed == {"boxes", "scores", "anchors", "detection_boxes_yxyx"}
    # The count of detections is a whole number.
    assert layers["detection_boxes_yxyx"].output_types == {1: "float32"}


def test_int8_is_calibrated_with_inputs_of_the_serving_signature(
    build, images, tmp_path
):
    tensorrt = FakeTensorRT()
    cache = tmp_path / "int8.cache"
    build(
        tensorrt,
        precision="int8",
        calibration_images=str(images),
        cache=str(cache),
    )
    assert set(tensorrt.flags) == {"FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS"}
    assert tensorrt.profiles[1] == ("inputs", *[(2, *SIZE, 3)] * 3)
    assert "calibration profile" in tensorrt.calls
    pixels = [
        np.array(PIL.Image.open(images / f"{number}.png")) for number in range(4)
    ]  # The fifth does not fill a batch.
    expected = [transforms.letterbox(image, SIZE)[0] for image in pixels]
    np.testing.assert_array_equal(np.concatenate(tensorrt.calibrated), expected)
    assert cache.read_bytes() == b"ranges"


def test_a_cache_replaces_the_images(build, tmp_path):
    cache = tmp_path / "int8.cache"
    cache.write_bytes(b"known ranges")
    tensorrt = FakeTensorRT()
    build(tensorrt, precision="int8", cache=str(cache))
    assert tensorrt.has_cache == b"known ranges"
    assert not tensorrt.calibrated and cache.read_bytes() == b"known ranges"


def test_calibration_without_a_cache_writes_none(build, images, tmp_path):
    tensorrt = FakeTensorRT()
    build(tensorrt, precision="int8", calibration_images=str(images))
    assert len(tensorrt.calibrated) == 2 and tensorrt.has_cache is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images",
        "model_tensorrt.onnx",
        "new",
    ]


def test_int8_requires_images(build):
    assert "--calibration_images" in build(FakeTensorRT(), precision="int8")


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_a_folder_without_images_is_an_error(build, tmp_path, folder):
    (tmp_path / "empty").mkdir()
    path = str(tmp_path / folder)
    tensorrt = FakeTensorRT()
    message = build(tensorrt, precision="int8", calibration_images=path)
    assert f"{path} has 0 images" in message and not tensorrt.calls


def test_too_few_images_for_a_batch_are_an_error(build, images):
    options = {"calibration_images": str(images), "batch_size": ["8"]}
    message = build(FakeTensorRT(), precision="int8", **options)
    assert "has 5 images, but a batch requires 8" in message


def test_a_corrupt_image_is_an_error_before_the_build(build, images, tmp_path):
    (images / "2.png").write_bytes(b"\x89PNG broken")
    tensorrt = FakeTensorRT()
    message = build(tensorrt, precision="int8", calibration_images=str(images))
    assert "2.png cannot be read as an image: of no known format" in message
    assert not tensorrt.calibrated and not (tmp_path / "new").exists()


def test_errors_of_the_parser_contain_the_nodes(build, tmp_path):
    errors = [
        types.SimpleNamespace(
            node_operator=lambda: "NonZero",
            node_name=lambda: "decode/where",
            desc=lambda: "not supported",
        )
    ]
    message = build(FakeTensorRT(errors=errors))
    assert "NonZero decode/where: not supported" in message
    assert not (tmp_path / "new").exists()


def test_a_build_that_fails_leaves_nothing(build, tmp_path):
    assert "built no engine" in build(FakeTensorRT(engine=None))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precisions_that_tensorrt_11_removed_are_refused(build, images, precision):
    tensorrt = FakeTensorRT("11.4.0.106")
    message = build(tensorrt, precision=precision, calibration_images=str(images))
    assert "TensorRT 11.4.0.106 reads precisions from the file" in message
    assert "COMPUTE_DTYPE" in message and not tensorrt.calls


def test_tensorrt_11_builds_the_file_as_it_is(build):
    assert "TensorRT 11.4.0.106, fp32" in build(FakeTensorRT("11.4.0.106"))


def test_an_old_tensorrt_is_refused(build):
    assert "install 10 or 11" in build(FakeTensorRT("8.6.1"))


def test_a_machine_without_a_gpu_is_an_error(build):
    message = build(FakeTensorRT(), FakeCuda(Errors.cudaErrorNoDevice))
    assert "cudaErrorNoDevice" in message


@pytest.mark.parametrize("sizes", [["0"], ["2", "1", "4"], ["1", "2"], ["two"], []])
def test_batch_sizes_in_another_order_are_refused(tool, sizes):
    with pytest.raises(ValueError, match="--batch_size="):
        tool.batch_sizes(sizes)


def test_one_batch_size_is_used_for_all(tool):
    assert tool.batch_sizes(["4"]) == (4, 4, 4)


def test_a_missing_file_is_an_error(build, tmp_path):
    path = str(tmp_path / "absent.onnx")
    assert f"{path} is no file" in build(FakeTensorRT(), onnx=path)


def test_another_onnx_file_is_refused(build, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"onnx NonMaxSuppression")
    assert "has no EfficientNMS_TRT" in build(FakeTensorRT(), onnx=str(path))


@pytest.mark.parametrize(
    ("module", "wheel"),
    [("tensorrt", "tensorrt"), ("cuda.bindings.runtime", "cuda-python")],
)
def test_a_missing_package_is_an_error(tool, monkeypatch, module, wheel):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"pip install {wheel}"):
        tool._package(module)


@pytest.mark.long
def test_the_command_prints_errors_without_traceback(tmp_path):
    arguments = ("--onnx=absent.onnx", "--output=x")
    done = tool_processes.run_python(TOOL, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "error: --onnx=absent.onnx is no file" in done.stderr
    assert "Traceback" not in done.stderr
