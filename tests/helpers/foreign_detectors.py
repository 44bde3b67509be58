"""Small detectors as torchvision and Model Garden name their tensors."""

import numpy as np

import foreign_resnets

NUM_CLASSES = 4
CHANNELS = 32  # Of pyramid and heads: one for each group.
BLOCKS, IS_BOTTLENECK = foreign_resnets.BOTTLENECKS
_END = "/.ATTRIBUTES/VARIABLE_VALUE"


def torchvision_state(*, is_v2=False, is_old=False):
    """Draws a state dict of torchvision, by the present names or those before 2022."""
    rng = np.random.default_rng(2)
    body = foreign_resnets.torch_state(BLOCKS, IS_BOTTLENECK)
    state = {f"backbone.body.{n}": x for n, x in body.items() if "fc." not in n}
    if not is_v2:  # The published first version has frozen normalizations.
        state = {n: x for n, x in state.items() if "num_batches_tracked" not in n}

    def add(name, out, inputs, size=3, has_bias=True):
        state[f"{name}.weight"] = rng.normal(0, 0.1, (out, inputs, size, size))
        if has_bias:
            state[f"{name}.bias"] = rng.normal(0, 0.1, out)

    inner = "" if is_old else ".0"
    for i, inputs in enumerate((32, 64, 128)):
        add(f"backbone.fpn.inner_blocks.{i}{inner}", CHANNELS, inputs, 1)
        add(f"backbone.fpn.layer_blocks.{i}{inner}", CHANNELS, CHANNELS)
    add("backbone.fpn.extra_blocks.p6", CHANNELS, 128 if is_v2 else CHANNELS)
    add("backbone.fpn.extra_blocks.p7", CHANNELS, CHANNELS)
    for head, last, depth in (
        ("classification", "cls_logits", NUM_CLASSES),
        ("regression", "bbox_reg", 4),
    ):
        root = f"head.{head}_head"
        for i in range(4):
            conv = f"conv.{2 * i}" if is_old else f"conv.{i}.0"
            add(f"{root}.{conv}", CHANNELS, CHANNELS, has_bias=not is_v2)
            if is_v2:
                state[f"{root}.conv.{i}.1.weight"] = rng.uniform(0.5, 1, CHANNELS)
                state[f"{root}.conv.{i}.1.bias"] = rng.normal(0, 0.1, CHANNELS)
        add(f"{root}.{last}", 9 * depth, CHANNELS)
    return {
        name: x if x.dtype == np.int64 else x.astype(np.float32)
        for name, x in state.items()
    }


def model_garden_tensors():
    """Draws the tensors of a checkpoint of Model Garden, with an optimizer's slot."""
    rng = np.random.default_rng(3)
    tensors = {"global_step": np.int64(7), "save_counter": np.int64(1)}

    def add(name, out, inputs=None, size=3, has_bias=True):
        if inputs is None:
            leaves = ("gamma", "beta", "moving_mean", "moving_variance")
            values = foreign_resnets.statistics(rng, out)
            for leaf, x in zip(leaves, values, strict=True):
                tensors[f"{name}/{leaf}{_END}"] = x
            return
        tensors[f"{name}/kernel{_END}"] = rng.normal(0, 0.1, (size, size, inputs, out))
        if has_bias:
            tensors[f"{name}/bias{_END}"] = rng.normal(0, 0.1, out)

    layer = "backbone/layer_with_weights-{}".format
    add(layer(0), 4, 3, 7, has_bias=False)
    add(layer(1), 4)
    inputs = 4
    for block, channels in enumerate((4, 8, 16, 32), start=2):
        add(f"{layer(block)}/_shortcut", 4 * channels, inputs, 1, has_bias=False)
        add(f"{layer(block)}/_norm0", 4 * channels)
        shapes = ((channels, 1), (channels, 3), (4 * channels, 1))
        for i, (out, size) in enumerate(shapes, start=1):
            add(f"{layer(block)}/_conv{i}", out, inputs, size, has_bias=False)
            add(f"{layer(block)}/_norm{i}", out)
            inputs = out
    # Keras's order: lateral 5 and 4, output 5, lateral 3, then outputs 6, 3, 4, 7.
    decoder = "decoder/layer_with_weights-{}".format
    for i, inputs in ((0, 128), (1, 64), (3, 32)):
        add(decoder(i), CHANNELS, inputs, 1)
    for i in (2, 4, 5, 6, 7):
        add(decoder(i), CHANNELS, CHANNELS)
    for i in range(8, 13):
        add(decoder(i), CHANNELS)
    for tower, last, depth in (
        ("cls", "_classifier", NUM_CLASSES),
        ("box", "_box_regressor", 4),
    ):
        for i in range(4):
            add(f"head/_{tower}_convs/{i}", CHANNELS, CHANNELS)
            for level in range(5):
                add(f"head/_{tower}_norms/{level}/{i}", CHANNELS)
        add(f"head/{last}", 9 * depth, CHANNELS)
    slot = f"head/_classifier/kernel/.OPTIMIZER_SLOT/optimizer/momentum{_END}"
    tensors[slot] = np.zeros(3)
    return {
        name: x if x.dtype == np.int64 else x.astype(np.float32)
        for name, x in tensors.items()
    }
