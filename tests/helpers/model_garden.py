"""Copies the weights of Model Garden's SpineNet to ours, layer by layer."""

import re
from collections.abc import Iterable, Iterator

import numpy as np


def copy_spinenet(source, backbone) -> None:
    """Copies all weights.

    Args:
      source: The Keras model.
      backbone: Our network of the same variant.
    """
    by_kind: dict[str, list] = {}
    for layer in source.layers:
        kind, number = re.fullmatch(r"(.+?)_?(\d*)", layer.name).groups()
        by_kind.setdefault(kind, []).append((int(number or 0), layer))
    # The order in which the layers were made.
    ordered = {
        kind: [layer for _, layer in sorted(pairs, key=lambda pair: pair[0])]
        for kind, pairs in by_kind.items()
    }
    pairs = list(_outer_layers(backbone))
    for layers, targets in [
        (ordered["conv2d"], [conv for conv, _ in pairs]),
        (ordered["batch_normalization"], [norm for _, norm in pairs]),
    ]:
        for layer, target in zip(layers, targets, strict=True):
            _copy(layer.variables, target.variables)
    blocks = list(_residual_blocks(backbone))
    for kind, num_convs in [("bottleneck_block", 3), ("residual_block", 2)]:
        ours = [block for block in blocks if len(block.convs) == num_convs]
        for layer, block in zip(ordered[kind], ours, strict=True):
            _copy_block(layer, block)


def _outer_layers(backbone) -> Iterator[tuple]:
    """Yields the convolutions and normalizations outside of residual blocks."""
    yield backbone.stem_conv, backbone.stem_norm
    for block in backbone.blocks:
        for part in block.resamplings:
            yield part.squeeze, part.norm_squeeze
            if part.downsample is not None:
                yield part.downsample, part.norm_downsample
            yield part.expand, part.norm_expand
    yield from zip(backbone.end_convs, backbone.end_norms, strict=True)


def _residual_blocks(backbone) -> Iterator:
    """Yields the residual blocks."""
    for group in backbone.stem_blocks:
        yield from group
    for block in backbone.blocks:
        yield from block.residuals


def _copy_block(layer, block) -> None:
    """Copies the weights of a residual block."""
    if block.shortcut is not None:
        _copy(layer._shortcut.variables, block.shortcut.variables)
        _copy(layer._norm0.variables, block.norm_shortcut.variables)
    for i, (conv, norm) in enumerate(zip(block.convs, block.norms, strict=True), 1):
        _copy(getattr(layer, f"_conv{i}").variables, conv.variables)
        _copy(getattr(layer, f"_norm{i}").variables, norm.variables)


def _copy(source: Iterable, target: Iterable) -> None:
    """Copies variables by the last parts of their names."""
    values = {variable.name.split("/")[-1]: variable.numpy() for variable in source}
    for variable in target:
        value = values.pop(variable.name.split("/")[-1])
        variable.assign(np.asarray(value))
    assert not values
