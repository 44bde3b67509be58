"""The origins of weights of MobileNetV3: timm, torchvision and Keras."""

import functools
import re
from collections.abc import Sequence

import numpy as np

from retinanet_tpu.model.pretrained import (
    inverted_bottleneck_names,
    key_mapping,
    weight_files,
)

_SAME = {"MobileNetV3.symmetric_padding": False}
_SYMMETRIC = {"MobileNetV3.symmetric_padding": True}

_BLOCK = re.compile(r"block(\d+)/")
# (number of blocks, whether the first has squeeze-excite): (variant, last channels)
_VARIANTS = {(15, False): ("large", 160), (11, True): ("small", 96)}
_KERAS_ALPHAS = (1.0, 0.75)  # Keras has ImageNet weights of these.
KERAS_APPLICATIONS = {
    (variant, alpha): weight_files.KerasApplication(
        f"MobileNetV3{variant.capitalize()}", num_convs, 2, {"alpha": alpha}
    )
    for alpha in _KERAS_ALPHAS
    for variant, num_convs in (("large", 62), ("small", 52))
}

_TORCHVISION_FIRST = "features.1.block.0.0.weight"
_KERAS_STEM = re.compile(r"conv(_bn)?/(\w+)")
_KERAS_BLOCK = re.compile(r"expanded_conv(?:_(\d+))?_([a-z]\w*)/(\w+)")
_KERAS_UNUSED = re.compile(r"(conv_1|conv_1_bn|conv_2|logits)/")
_KERAS_LAYERS = {
    "expand": "expand",
    "expand_bn": "norm_expand",
    "depthwise": "depthwise",
    "depthwise_bn": "norm_depthwise",
    "squeeze_excite_conv": "squeeze_excite/squeeze",
    "squeeze_excite_conv_1": "squeeze_excite/excite",
    "project": "project",
    "project_bn": "norm_project",
}


def network(shapes: key_mapping.Shapes) -> key_mapping.Network | None:
    """Returns the MobileNetV3 that has variables of these shapes, or None.

    Args:
      shapes: The shapes by path below "backbone/".
    """
    blocks = [int(match[1]) for name in shapes if (match := _BLOCK.match(name))]
    last = max(blocks, default=0)
    has_squeeze = "block0/squeeze_excite/squeeze/kernel" in shapes
    variant, last_channels = _VARIANTS.get((last + 1, has_squeeze), ("", 1))
    # MobileDet has no squeeze-and-excitation.
    if not variant or f"block{last}/squeeze_excite/squeeze/kernel" not in shapes:
        return None
    *_, channels = shapes.get(f"block{last}/project/kernel", (0,))
    width = channels / last_channels
    return key_mapping.Network(
        f"a MobileNetV3-{variant.capitalize()} of width {width:g}",
        f"MobileNetV3.variant = '{variant}', MobileNetV3.width = {width:g}",
        width_setting="MobileNetV3.scales_like_keras",
        keras_application=KERAS_APPLICATIONS.get((variant, width)),
    )


def _is_timm(tensors: key_mapping.Tensors) -> bool:
    is_timm = key_mapping.has_name(tensors, inverted_bottleneck_names.TIMM_FIRST)
    last_block = inverted_bottleneck_names.timm_last_block(tensors)
    return is_timm and last_block is not None


def _is_torchvision(tensors: key_mapping.Tensors) -> bool:
    return key_mapping.has_name(tensors, _TORCHVISION_FIRST)


def _is_keras(tensors: key_mapping.Tensors) -> bool:
    return "expanded_conv_depthwise/kernel" in tensors


def _from_timm(
    tensors: key_mapping.Tensors,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the tensors by our paths, without the last convolution."""
    last_block = inverted_bottleneck_names.timm_last_block(tensors)
    return key_mapping.from_torch(
        {
            name: tensor
            for name, tensor in tensors.items()
            if last_block is None or not name.startswith(last_block)
        },
        first=inverted_bottleneck_names.TIMM_FIRST,
        unused=inverted_bottleneck_names.TIMM_UNUSED,
        paths_fn=inverted_bottleneck_names.timm_paths,
    )


_from_torchvision = functools.partial(
    key_mapping.from_torch,
    first=_TORCHVISION_FIRST,
    unused=inverted_bottleneck_names.TORCHVISION_UNUSED,
    paths_fn=inverted_bottleneck_names.torchvision_paths,
)


def _keras_paths(names: Sequence[str]) -> dict[str, str]:
    """Returns the paths of Keras's names."""
    paths = {}
    for name in names:
        if stem := _KERAS_STEM.fullmatch(name):
            paths[name] = f"stem/{'norm' if stem[1] else 'conv'}/{stem[2]}"
        elif (match := _KERAS_BLOCK.fullmatch(name)) and match[2] in _KERAS_LAYERS:
            layer = _KERAS_LAYERS[match[2]]
            paths[name] = f"block{match[1] or 0}/{layer}/{match[3]}"
    return paths


_TIMM = tuple(
    key_mapping.Origin(
        name=f"timm ({name})",
        gin_file=gin_file,
        settings=settings,
        pixels=pixels,
        epsilon=epsilon,
        recognize_fn=_is_timm,
        rename_fn=_from_timm,
    )
    for name, gin_file, settings, pixels, epsilon in (
        (
            "tf_mobilenetv3_*",
            key_mapping.INCEPTION_GIN,
            _SAME,
            key_mapping.INCEPTION_PIXELS,
            1e-3,
        ),
        (
            "mobilenetv3_*",
            key_mapping.TORCHVISION_GIN,
            _SYMMETRIC,
            key_mapping.IMAGENET_PIXELS,
            1e-5,
        ),
        ("mobilenetv3_*.ra4_*", "", _SYMMETRIC, key_mapping.INCEPTION_PIXELS, 1e-5),
        ("mobilenetv3_*.miil_*", "", _SYMMETRIC, key_mapping.UNIT_PIXELS, 1e-5),
    )
)
_TORCHVISION = key_mapping.Origin(
    name="torchvision",
    gin_file=key_mapping.TORCHVISION_GIN,
    settings=_SYMMETRIC,
    pixels=key_mapping.IMAGENET_PIXELS,
    epsilon=1e-3,
    recognize_fn=_is_torchvision,
    rename_fn=_from_torchvision,
)
_KERAS = key_mapping.Origin(
    name="Keras",
    gin_file=key_mapping.INCEPTION_GIN,
    settings=_SAME,
    pixels=key_mapping.INCEPTION_PIXELS,
    epsilon=1e-3,
    recognize_fn=_is_keras,
    rename_fn=functools.partial(
        key_mapping.from_keras, unused=_KERAS_UNUSED, paths_fn=_keras_paths
    ),
)
ORIGINS = (*_TIMM, _TORCHVISION, _KERAS)
