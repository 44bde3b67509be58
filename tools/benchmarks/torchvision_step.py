"""Measures torchvision's RetinaNet training step as a row of step.py's table.

  /its/environment/bin/python torchvision_step.py --batch_size 8 16 32 64

These are the fastest settings of PyTorch that we know: bfloat16 autocast, channels
last, torch.compile, fused SGD, inputs that are on the device already, no resizing. The
model is a ResNet-50 with 91 classes and trainable batch norms.

Run it with --compile=parts too, and use the faster result: torchvision matches and
computes losses image by image, which torch.compile handles badly. The script needs an
environment of its own with torch and torchvision.
"""

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable, Sequence

try:
    import torch
    import torchvision
    from torch.utils import flop_counter
except ImportError as error:
    sys.exit(f"error: {error}; install torch and torchvision.")

_NUM_CLASSES = 91
_NUM_BOXES = 7  # COCO's mean. Unlike with our padded boxes, more boxes cost more here.


def make_step(
    batch_size: int,
    image_size: int,
    compiled: str,
    device: str,
    trainable_layers: int = 5,
) -> Callable[[], None]:
    """Returns a function that trains on one batch.

    Args:
      batch_size: The number of images.
      image_size: The height and width of the images, px.
      compiled: The part to compile: "whole", "parts" (backbone and head) or "none".
      device: The device, "cuda" or "cpu".
      trainable_layers: The number of parts of the backbone to train; 3 freezes the stem
        and the first stage.
    """
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=_NUM_CLASSES,
        trainable_backbone_layers=5,
        min_size=image_size,
        max_size=image_size,
        _skip_resize=True,
    )
    _freeze(model.backbone.body, trainable_layers)
    model = model.to(device, memory_format=torch.channels_last).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True
    )
    if compiled == "whole":
        model = torch.compile(model)
    elif compiled == "parts":
        model.backbone = torch.compile(model.backbone)
        model.head = torch.compile(model.head)
    images = list(torch.rand(batch_size, 3, image_size, image_size, device=device))
    targets = [_target(image_size, device) for _ in range(batch_size)]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()

    return step


def secs_per_step(step: Callable[[], None], num_steps: int, device: str) -> float:
    """Returns the mean time of a step in seconds.

    Args:
      step: The function that trains on one batch.
      num_steps: The number of steps to run.
      device: The device, "cuda" or "cpu".
    """
    start = time.perf_counter()
    for _ in range(num_steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / num_steps


def row(name: str, batch_size: int, flops: float, secs: Sequence[float]) -> str:
    """Returns a row of the table of tools/benchmarks/step.py.

    Args:
      name: The name of the program.
      batch_size: The number of images in a step.
      flops: The floating-point operations of a step.
      secs: The times of a step, one per round.
    """
    median = statistics.median(secs)
    teraflop = flops / 1e12
    low, high = min(secs) * 1e3, max(secs) * 1e3
    return (
        f"| {name} | {batch_size} | {median * 1e3:.2f} ({low:.2f} to {high:.2f}) | "
        f"{batch_size / median:,.1f} | {teraflop:.4g} | {teraflop / median:.4g} | "
        "nan | nan |"
    )


def _freeze(body: torch.nn.Module, trainable_layers: int) -> None:
    """Freezes the first parts; without weights, torchvision would train all of them."""
    parts = ["layer4", "layer3", "layer2", "layer1", "conv1", "bn1"]
    trained = tuple(parts[: trainable_layers + (trainable_layers == 5)])
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.startswith(trained))


def _target(image_size: int, device: str) -> dict[str, torch.Tensor]:
    corners = torch.rand(_NUM_BOXES, 2, device=device) * image_size / 2
    sides = 16 + torch.rand(_NUM_BOXES, 2, device=device) * (image_size / 2 - 16)
    labels = torch.randint(1, _NUM_CLASSES, [_NUM_BOXES], device=device)
    return {"boxes": torch.cat([corners, corners + sides], dim=1), "labels": labels}


def _flops(batch_size: int, image_size: int, device: str, trainable_layers: int) -> int:
    """Returns the FLOP of an uncompiled step, including the backward pass."""
    step = make_step(batch_size, image_size, "none", device, trainable_layers)
    with flop_counter.FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        nargs="+",
        default=[8],
        help="Numbers of images in a batch.",
    )
    parser.add_argument(
        "--image_size", type=int, default=640, help="Height and width of an image, px."
    )
    parser.add_argument(
        "--compile",
        choices=["whole", "parts", "none"],
        default="whole",
        help="Part of the model that torch.compile compiles.",
    )
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="Device of PyTorch."
    )
    parser.add_argument(
        "--trainable_layers",
        type=int,
        default=5,
        help="Number of parts of the backbone to train; 3 is coco_r50_640_3x.gin.",
    )
    parser.add_argument("--rounds", type=int, default=5, help="Number of measurements.")
    parser.add_argument(
        "--steps", type=int, default=10, help="Number of steps in a measurement."
    )
    parser.add_argument(
        "--warm_up_steps",
        type=int,
        default=5,
        help="Number of steps before the measurements.",
    )
    flags = parser.parse_args()
    is_cuda = flags.device == "cuda"
    hardware = torch.cuda.get_device_name() if is_cuda else "cpu"
    today = datetime.date.today().isoformat()
    print(
        f"{today}, {hardware}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, compile={flags.compile}\n"
    )
    for batch_size in flags.batch_size:
        size = (batch_size, flags.image_size)
        flops = _flops(*size, flags.device, flags.trainable_layers)
        step = make_step(*size, flags.compile, flags.device, flags.trainable_layers)
        secs_per_step(step, flags.warm_up_steps, flags.device)
        secs = [
            secs_per_step(step, flags.steps, flags.device) for _ in range(flags.rounds)
        ]
        print(row("torchvision", batch_size, flops, secs), flush=True)


if __name__ == "__main__":
    main()
