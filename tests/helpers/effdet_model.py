"""Writes the weights, inputs and outputs of a random EfficientDet-D0 to a file.

A process of its own, because torch cannot live beside TensorFlow; see `torch_models`.
Argument: the .npz file to write.
"""

import sys

import numpy as np

# Of EfficientNet-B0 at 512 px.
CHANNELS = {3: 40, 4: 112, 5: 320}


def main(file):
    """Writes the file."""
    import effdet
    import torch

    torch.manual_seed(0)
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    network = effdet.EfficientDet(config, pretrained_backbone=False).eval()
    parts = {name: x for name, x in network.named_children() if name != "backbone"}
    arrays = {}
    with torch.no_grad():
        for part, module in parts.items():
            for name, x in module.state_dict().items():
                if x.dim() > 1:
                    x.normal_(0, 0.2)
                elif x.is_floating_point():
                    x.uniform_(0.5, 1.5)
                arrays[f"{part}.{name}"] = x
        inputs = [
            torch.randn(1, channels, 512 >> level, 512 >> level)
            for level, channels in CHANNELS.items()
        ]
        pyramid = network.fpn(inputs)
        outputs = {"pyramid": pyramid}
        outputs["class_logits"] = network.class_net(pyramid)
        outputs["box_deltas"] = network.box_net(pyramid)
    for name, tensors in {"inputs": inputs, **outputs}.items():
        for i, x in enumerate(tensors):
            arrays[f"{name}.{i}"] = x.permute(0, 2, 3, 1)
    np.savez(file, **{name: x.detach().numpy() for name, x in arrays.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
