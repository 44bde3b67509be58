"""Writes a random ResNet of torchvision or timm, and its features, to files.

A process of its own: torch as PyPI has it cannot live beside TensorFlow once
torchvision imports its compiler, as both bring an LLVM. Arguments: library, depth, file
of images (uint8 .npy), file of weights to write, file of features to write (.npz).
"""

import sys

import numpy as np


def main(library, depth, pictures_file, weights_file, features_file):
    """Writes the files."""
    import torch

    torch.manual_seed(int(depth))
    if library == "timm":
        import safetensors.torch
        import timm

        model = timm.create_model(f"resnet{depth}", pretrained=False)
    else:
        import torchvision

        model = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    _randomize_norms(model.eval(), torch)
    state = model.state_dict()
    if weights_file.endswith(".safetensors"):
        safetensors.torch.save_file(state, weights_file)
    else:
        torch.save({"epoch": 3, "state_dict": state}, weights_file)
    mean, stddev = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = (np.load(pictures_file) / 255 - mean) / stddev
    x = torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = _features(model, x, library)
    np.savez(features_file, *[y.permute(0, 2, 3, 1).numpy() for y in features])


def _features(model, x, library):
    if library == "timm":
        return model.forward_intermediates(x, intermediates_only=True)[1:]
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    features = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = stage(x)
        features.append(x)
    return features


def _randomize_norms(model, torch):
    """Draws all that a batch norm holds; some variances are below its epsilon."""
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_var.uniform_(0.5, 2)[::20] = 1e-6
            norm.running_mean.normal_(0, 0.1)
            norm.weight.data = norm.running_var.sqrt() * (0.5 + 0.5 * torch.rand(1))
            norm.bias.data.normal_(0, 0.3)


if __name__ == "__main__":
    main(*sys.argv[1:])
