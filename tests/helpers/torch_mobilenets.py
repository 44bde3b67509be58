"""Writes a random MobileNetV3 of torchvision, and its features, to files.

A process of its own, see torch_models. Arguments: variant, width, file of images
(float32 .npy, normalized), file of weights to write and of features to write (.npz).
"""

import sys

import numpy as np

import torch_models

# The indices of the last modules of strides 8, 16 and 32 in `features`.
TAPS = {"large": (6, 12, 15), "small": (3, 8, 11)}


def main(variant, width, images_file, weights_file, features_file):
    """Writes the files."""
    import torch
    import torchvision

    torch.manual_seed(0)
    make = getattr(torchvision.models.mobilenetv3, f"mobilenet_v3_{variant}")
    model = make(weights=None, width_mult=float(width)).eval()
    torch_models._randomize_norms(model, torch)
    state = model.state_dict()
    np.savez(weights_file, **{name: x.numpy() for name, x in state.items()})
    x = torch.tensor(np.load(images_file)).permute(0, 3, 1, 2)
    features = []
    with torch.no_grad():
        for index, module in enumerate(model.features):
            x = module(x)
            if index in TAPS[variant]:
                features.append(x.permute(0, 2, 3, 1).numpy())
    np.savez(features_file, *features)


if __name__ == "__main__":
    main(*sys.argv[1:])
