"""ResNets as other projects write and compute them, for tests of pretrained weights."""

import ast
import functools
import json

import numpy as np
import tensorflow as tf

import repository
from retinanet_tpu.model import retinanet
from retinanet_tpu.model.backbones import resnet
from retinanet_tpu.model.pretrained import loading

GIN_CONFIGS = repository.ROOT / "gin_configs/model"
TORCHVISION = "pretrained_torchvision.gin"
KERAS = "pretrained_keras.gin"
BOTTLENECKS = ((1, 1, 1, 1), True)
BASIC_BLOCKS = ((1, 1, 1, 1), False)
_MEAN = np.array([0.485, 0.456, 0.406])
_STDDEV = np.array([0.229, 0.224, 0.225])


def settings(gin_file, target):
    """Returns what a gin file binds of one target."""
    lines = [x.split("#")[0] for x in (GIN_CONFIGS / gin_file).read_text().splitlines()]
    bindings = dict(line.split(" = ") for line in lines if " = " in line)
    return {
        name.removeprefix(f"{target}."): ast.literal_eval(value.strip())
        for name, value in bindings.items()
        if name.startswith(f"{target}.")
    }


def make_backbone(gin_file, **kwargs):
    """Returns a ResNet as this gin file sets it; kwargs win."""
    return resnet.ResNet(**(settings(gin_file, "ResNet") | kwargs))


def make_normalize_fn(gin_file):
    """Returns what a network of this gin file makes of pixels."""
    return functools.partial(retinanet.normalize, **settings(gin_file, "normalize"))


def load(backbone, checkpoint, gin_file, read_run_fn=None):
    """Loads pretrained weights as a run with this gin file does."""
    return loading.load(
        backbone,
        str(checkpoint),
        normalize_fn=make_normalize_fn(gin_file),
        read_run_fn=read_run_fn,
    )


def pictures(size=(64, 70)):
    """Returns two uint8 images."""
    return np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)


def features(backbone, gin_file, images):
    """Returns what the backbone makes of uint8 images, level by level."""
    x = make_normalize_fn(gin_file)(images)
    return [x.numpy() for x in backbone(x, is_training=False).values()]


def assert_same(made, expected, tolerance=1e-4):
    """Asserts that features of four levels differ by a part of the largest at most."""
    assert len(made) == len(expected) == 4
    for ours, theirs in zip(made, expected, strict=True):
        assert np.std(theirs) > 0
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max()
        )


def statistics(rng, channels):
    """Draws gamma, beta, mean and variance; some variances are below the epsilons."""
    variance = rng.uniform(0.5, 2, channels)
    variance[:: max(2, channels // 3)] = 1e-6
    gamma = rng.uniform(0.5, 1, channels) * np.sqrt(variance)
    return gamma, rng.normal(0, 0.3, channels), rng.normal(0, 0.1, channels), variance


def torch_state(blocks, is_bottleneck, width=4):
    """Draws a state dict as torchvision names and shapes it."""
    rng = np.random.default_rng(1)
    state = {}

    def add(conv, norm, out, size, inputs):
        kernel = rng.normal(
            0, (size * size * inputs) ** -0.5, (out, inputs, size, size)
        )
        state[f"{conv}.weight"] = kernel
        leaves = ("weight", "bias", "running_mean", "running_var")
        for leaf, value in zip(leaves, statistics(rng, out), strict=True):
            state[f"{norm}.{leaf}"] = value
        state[f"{norm}.num_batches_tracked"] = np.array(7)

    add("conv1", "bn1", width, 7, 3)
    inputs = width
    for stage, num_blocks in enumerate(blocks, start=1):
        channels = width * 2 ** (stage - 1)
        kernels = [(channels, 3), (channels, 3)]
        if is_bottleneck:
            kernels = [(channels, 1), (channels, 3), (4 * channels, 1)]
        for block in range(num_blocks):
            name = f"layer{stage}.{block}"
            if block == 0 and (stage > 1 or is_bottleneck):
                shortcut = f"{name}.downsample"
                add(f"{shortcut}.0", f"{shortcut}.1", kernels[-1][0], 1, inputs)
            for i, (out, size) in enumerate(kernels, start=1):
                add(f"{name}.conv{i}", f"{name}.bn{i}", out, size, inputs)
                inputs = out
    state["fc.weight"], state["fc.bias"] = rng.normal(size=(5, inputs)), np.zeros(5)
    return {
        name: value if value.dtype == np.int64 else value.astype(np.float32)
        for name, value in state.items()
    }


def torch_features(state, images):
    """Computes what torchvision's ResNet does, from its names."""

    def norm(x, name):
        scale = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"] + 1e-5)
        return (x - state[f"{name}.running_mean"]) * scale + state[f"{name}.bias"]

    def conv_norm(x, conv, bn, stride=1):
        kernel = state[f"{conv}.weight"].transpose(2, 3, 1, 0)
        pad = [kernel.shape[0] // 2] * 2
        x = np.pad(x, [[0, 0], pad, pad, [0, 0]])
        return norm(tf.nn.conv2d(x, kernel, stride, "VALID").numpy(), bn)

    x = ((images / 255 - _MEAN) / _STDDEV).astype(np.float32)
    x = np.maximum(conv_norm(x, "conv1", "bn1", 2), 0)
    x = np.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-np.inf)
    x = tf.nn.max_pool2d(x, 3, 2, "VALID").numpy()
    features = []
    for stage in (1, 2, 3, 4):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name = f"layer{stage}.{block}"
            last = 3 if f"{name}.conv3.weight" in state else 2
            stride = 2 if stage > 1 and block == 0 else 1
            y = x
            for i in range(1, last + 1):
                here = stride if i == last - 1 else 1
                y = conv_norm(y, f"{name}.conv{i}", f"{name}.bn{i}", here)
                y = np.maximum(y, 0) if i < last else y
            if f"{name}.downsample.0.weight" in state:
                x = conv_norm(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
            x = np.maximum(x + y, 0)
            block += 1
        features.append(x)
    return features


def write_safetensors(path, tensors):
    """Writes the format by hand; returns the path."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    dtypes = {"float32": "F32", "float16": "F16", "int64": "I64"}
    for name, tensor in tensors.items():
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {
            "dtype": dtypes[tensor.dtype.name],
            "shape": tensor.shape,
            "data_offsets": offsets,
        }
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path
