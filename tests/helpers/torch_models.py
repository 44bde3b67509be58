"""Writes a random model of a PyTorch library, and its features, to files.

A process of its own: torch as PyPI has it cannot live beside TensorFlow once
torchvision imports its compiler, as both bring an LLVM. Arguments: library, name of the
model, file of images (.npz of uint8 arrays), file of weights to write, file of features
to write (.npz; those of a level are in the order of the images, levels ascend).
"""

import sys

import numpy as np

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(library, name, images_file, weights_file, features_file):
    """Writes the files."""
    import torch

    torch.manual_seed(1)
    model, (mean, stddev), features_fn = _make(library, name)
    _randomize_norms(model.eval(), torch)
    state = model.state_dict()
    if weights_file.endswith(".safetensors"):
        import safetensors.torch

        safetensors.torch.save_file(state, weights_file)
    elif library == "efficientnet_lite_pytorch":  # As its packages contain the weights.
        torch.save(state, weights_file, _use_new_zipfile_serialization=False)
    else:
        torch.save({"epoch": 3, "state_dict": state}, weights_file)
    features = []
    for images in np.load(images_file).values():
        x = (images / 255 - np.array(mean)) / np.array(stddev)
        x = torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2)
        with torch.no_grad():
            features += [y.permute(0, 2, 3, 1).numpy() for y in features_fn(model, x)]
    np.savez(features_file, *features)


def _make(library, name):
    """Returns a model, its mean and deviation of pixels, and a function of features."""
    if library == "timm":
        import timm

        model = timm.create_model(name, pretrained=False)
        config = model.pretrained_cfg
        is_resnet = name.startswith("res")
        features_fn = _timm_resnet if is_resnet else _timm_mobile
        return model, (config["mean"], config["std"]), features_fn
    if library == "efficientnet_lite_pytorch":
        import efficientnet_lite_pytorch

        # Without a size, it pads images of all sizes as TensorFlow does.
        model = efficientnet_lite_pytorch.EfficientNet.from_name(name, image_size=None)
        return model, ((127 / 255,) * 3, (128 / 255,) * 3), _package
    import torchvision

    model = getattr(torchvision.models, name)(weights=None)
    return model, _IMAGENET, _torchvision_resnet if name[:3] == "res" else _torchvision


def _timm_resnet(model, x):
    return model.forward_intermediates(x, intermediates_only=True)[1:]


def _torchvision_resnet(model, x):
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    features = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = stage(x)
        features.append(x)
    return features


def _timm_mobile(model, x):
    x = model.bn1(model.conv_stem(x))
    blocks = [block for stage in model.blocks for block in stage]
    return _last_of_levels(model.act1(x) if hasattr(model, "act1") else x, blocks)


def _torchvision(model, x):
    blocks = []
    for module in model.features[1:-1]:
        is_stage = type(module).__name__ == "Sequential"
        blocks += list(module) if is_stage else [module]
    return _last_of_levels(model.features[0](x), blocks)


def _package(model, x):
    # The activation of the stem is a function of the package, relu6.
    x = model._bn0(model._conv_stem(x)).clamp(0, 6)
    return _last_of_levels(x, model._blocks)


def _last_of_levels(x, blocks):
    """Returns the output of the last block of each size from stride 4 on."""
    outputs = {}
    for block in blocks:
        if type(block).__name__ == "ConvBnAct":
            continue  # The last convolution, which is no part of the backbone.
        x = block(x)
        outputs[x.shape[-2:]] = x
    return list(outputs.values())[-4:]


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
