"""Names and layouts that other projects give the tensors of mobile networks."""

import numpy as np

from retinanet_tpu import replicas
from retinanet_tpu.model import norms

EFFICIENTNET_STAGES = (1, 2, 2, 3, 3, 4, 1)
# timm's stages of MobileNetV3-Large; torchvision and Keras number its blocks.
MOBILENET_STAGES = (1, 2, 3, 4, 2, 3)
_TORCH_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_ORDER = ("expand", "depthwise", "squeeze", "project")


def norm_fn(channels, **kwargs):
    """Returns a batch normalization with TensorFlow's epsilon for these networks."""
    return norms.BatchNorm(channels, epsilon=1e-3, **kwargs)


def variables(backbone):
    """Returns the values of a backbone by path below "backbone/"."""
    return {
        replicas.variable_path(v).removeprefix("backbone/"): v.numpy()
        for v in backbone.variables
    }


def randomize(backbone):
    """Gives every variable other values than at its creation, positive variances."""
    rng = np.random.default_rng(4)
    for variable in backbone.variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))


def torch_state(backbone, name_fn, stages):
    """Returns a backbone's values as PyTorch lays them out, by name_fn's names."""
    tensors = variables(backbone)
    places = _places(stages)
    head = "_fc" if name_fn is package_name else "classifier"
    state = {f"{head}.weight": np.zeros([2, 3], np.float32)}
    for path, value in tensors.items():
        parent, _, leaf = path.rpartition("/")
        block, _, layer = parent.partition("/")
        if value.ndim == 4:
            # [H, W, C, 1] of a depthwise kernel, else [H, W, in, out].
            axes = (2, 3, 0, 1) if layer == "depthwise" else (3, 2, 0, 1)
            value = np.ascontiguousarray(value.transpose(axes))
        if block == "stem":
            name = name_fn(None, layer, set())
        else:
            index = int(block.removeprefix("block"))
            parts = {p.split("/")[1] for p in tensors if p.startswith(f"{block}/")}
            name = name_fn((index, *places[index]), layer, parts)
        state[f"{name}.{_TORCH_LEAVES[leaf]}"] = value
    return state


def package_name(place, layer, parts):
    """Returns a name of efficientnet_lite_pytorch."""
    if place is None:
        return {"conv": "_conv_stem", "norm": "_bn0"}[layer]
    names = {
        "expand": "_expand_conv",
        "norm_expand": "_bn0",
        "depthwise": "_depthwise_conv",
        "norm_depthwise": "_bn1",
        "squeeze_excite/squeeze": "_se_reduce",
        "squeeze_excite/excite": "_se_expand",
        "project": "_project_conv",
        "norm_project": "_bn2",
    }
    return f"_blocks.{place[0]}.{names[layer]}"


def timm_name(place, layer, parts):
    """Returns a name of timm."""
    if place is None:
        return {"conv": "conv_stem", "norm": "bn1"}[layer]
    names = {
        "depthwise": "conv_dw",
        "squeeze_excite/squeeze": "se.conv_reduce",
        "squeeze_excite/excite": "se.conv_expand",
    }
    if "expand" in parts:
        names |= {"expand": "conv_pw", "project": "conv_pwl"}
        names |= {"norm_expand": "bn1", "norm_depthwise": "bn2", "norm_project": "bn3"}
    else:
        names |= {"project": "conv_pw", "norm_depthwise": "bn1", "norm_project": "bn2"}
    return f"blocks.{place[1]}.{place[2]}.{names[layer]}"


def torchvision_efficientnet_name(place, layer, parts):
    """Returns a name of torchvision's EfficientNet."""
    prefix = place and f"features.{place[1] + 1}.{place[2]}"
    return _torchvision_name(prefix, layer, parts)


def torchvision_mobilenet_name(place, layer, parts):
    """Returns a name of torchvision's MobileNetV3."""
    prefix = place and f"features.{place[0] + 1}"
    return _torchvision_name(prefix, layer, parts)


def _torchvision_name(prefix, layer, parts):
    if prefix is None:
        return {"conv": "features.0.0", "norm": "features.0.1"}[layer]
    present = [p for p in _ORDER if p in parts or f"{p}_excite" in parts]
    kind = layer.removeprefix("norm_").split("_")[0]
    item = "1" if layer.startswith("norm_") else "0"
    if kind == "squeeze":
        item = "fc1" if layer.endswith("/squeeze") else "fc2"
    return f"{prefix}.block.{present.index(kind)}.{item}"


def keras_efficientnet(backbone):
    """Returns a backbone's values by the names of Keras's EfficientNet."""
    layer_names = {
        "expand": "expand_conv",
        "norm_expand": "expand_bn",
        "depthwise": "dwconv",
        "norm_depthwise": "bn",
        "squeeze_excite/squeeze": "se_reduce",
        "squeeze_excite/excite": "se_expand",
        "project": "project_conv",
        "norm_project": "project_bn",
    }
    places = _places(EFFICIENTNET_STAGES)
    tensors = {"top_conv/kernel": np.zeros(1), "normalization/count": np.zeros(())}
    tensors["normalization/mean"] = np.array([0.485, 0.456, 0.406])
    for path, value in variables(backbone).items():
        parent, _, leaf = path.rpartition("/")
        block, _, layer = parent.partition("/")
        if block == "stem":
            name = {"conv": "stem_conv", "norm": "stem_bn"}[layer]
        else:
            stage, position = places[int(block.removeprefix("block"))]
            name = f"block{stage + 1}{'abcd'[position]}_{layer_names[layer]}"
        tensors[f"{name}/{leaf}"] = value
    return tensors


def keras_mobilenet(backbone):
    """Returns a backbone's values by the names of Keras's MobileNetV3."""
    tensors = {"conv_1/kernel": np.zeros(1), "logits/bias": np.zeros(1)}
    for path, value in variables(backbone).items():
        parent, _, leaf = path.rpartition("/")
        block, _, layer = parent.partition("/")
        if block == "stem":
            name = {"conv": "conv", "norm": "conv_bn"}[layer]
        else:
            index = int(block.removeprefix("block"))
            layer = layer.replace("excite/squeeze", "excite_conv")
            layer = layer.replace("excite/excite", "excite_conv_1")
            if layer.startswith("norm_"):
                layer = f"{layer.removeprefix('norm_')}_bn"
            name = f"expanded_conv{f'_{index}' if index else ''}_{layer}"
        tensors[f"{name}/{leaf}"] = value
    return tensors


def _places(stages):
    """Returns (stage, position) of each block."""
    return [(s, i) for s, number in enumerate(stages) for i in range(number)]
