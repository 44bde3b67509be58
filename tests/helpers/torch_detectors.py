"""Writes a random RetinaNet of torchvision and its detections to files.

A process of its own, see torch_models. Arguments: the name of the model, a file of
images (.npz, uint8 [H, W, 3] each), the file of weights to write (.pth), and the file
of detections to write (.npz; boxes_0, scores_0, labels_0 of the first image and so on).
"""

import sys

import numpy as np


def main(name, images_file, weights_file, detections_file):
    """Writes the files."""
    import torch
    import torchvision

    torch.manual_seed(0)
    make = getattr(torchvision.models.detection, name)
    model = make(weights=None, weights_backbone=None, num_classes=91).eval()
    _randomize(model, torch)
    images = [
        torch.tensor(image).permute(2, 0, 1).float() / 255
        for image in np.load(images_file).values()
    ]
    if not name.endswith("_v2"):  # The published first version has frozen norms.
        _freeze(model, torchvision.ops.FrozenBatchNorm2d)
    results = {}
    with torch.no_grad():
        _scale_last_layers(model, images[0], torch, torchvision)
        for i, image in enumerate(images):
            # The transform must not resize.
            model.transform.min_size = (min(image.shape[1:]),)
            model.transform.max_size = max(image.shape[1:])
            (detections,) = model([image])
            results |= {f"{key}_{i}": x.numpy() for key, x in detections.items()}
    torch.save(model.state_dict(), weights_file)
    np.savez(detections_file, **results)


def _randomize(model, torch):
    """Draws values that a trained model might have."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)[::20] = 1e-4
            module.running_mean.normal_(0, 0.1)
            root = module.running_var.sqrt()
            module.weight.data = root * (0.3 + 0.2 * torch.rand(1))
            module.bias.data.normal_(0, 0.3)
        if isinstance(module, torch.nn.GroupNorm):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    for module in model.head.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                module.bias.data.normal_(0, 0.1)


def _scale_last_layers(model, image, torch, torchvision):
    """Makes scores of which some hundred exceed the threshold, and moderate boxes."""
    (x,) = model.transform([image])[0].tensors.split(1)
    outputs = model.head(list(model.backbone(x).values()))
    classes = model.head.classification_head.cls_logits
    classes.weight.data /= outputs["cls_logits"].std()
    boxes = model.head.regression_head.bbox_reg
    boxes.weight.data *= 0.3 / outputs["bbox_regression"].std()
    weights = torchvision.models.detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1
    names = weights.meta["categories"]
    is_used = torch.tensor([name not in ("__background__", "N/A") for name in names])
    classes.bias.data[:] = torch.where(is_used, -5.5, -30.0).repeat(9)


def _freeze(module, norm_fn):
    """Replaces batch normalizations by frozen ones without epsilon."""
    for name, child in module.named_children():
        if type(child).__name__ == "BatchNorm2d":
            frozen = norm_fn(child.num_features, eps=0.0)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            _freeze(child, norm_fn)


if __name__ == "__main__":
    main(*sys.argv[1:])
