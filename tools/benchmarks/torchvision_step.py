"""Times torchvision's RetinaNet training step, as a row of tools/benchmarks/step.py.

  /its/environment/bin/python torchvision_step.py --batch 8 16 32 64

PyTorch at its best known to us: bfloat16 autocast, channels last, torch.compile, fused
SGD, inputs on the device already, no resizing. ResNet-50, 91 classes, batch norms that
train. Try --compile=parts too, and believe the faster: matching and losses go image by
image there, which compiles badly. Needs an environment of its own with torch and
torchvision.
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
_NUM_BOXES = 7  # COCO's mean; here, unlike with padded boxes, more would cost more.


def make_step(batch: int, size: int, compiled: str, device: str) -> Callable[[], None]:
    """Returns a function that trains on one batch.

    Args:
      batch: images.
      size: their height and width, px.
      compiled: "whole", "parts" (backbone and head) or "none".
      device: "cuda" or "cpu".
    """
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=_NUM_CLASSES,
        trainable_backbone_layers=5,
        min_size=size,
        max_size=size,
        _skip_resize=True,
    )
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True
    )
    if compiled == "whole":
        model = torch.compile(model)
    elif compiled == "parts":
        model.backbone = torch.compile(model.backbone)
        model.head = torch.compile(model.head)
    images = list(torch.rand(batch, 3, size, size, device=device))
    targets = [_target(size, device) for _ in range(batch)]

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()

    return step


def secs_per_step(step: Callable[[], None], num_steps: int, device: str) -> float:
    """Runs a step some times and returns the seconds that one took."""
    start = time.perf_counter()
    for _ in range(num_steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / num_steps


def row(name: str, batch: int, flops: float, secs: Sequence[float]) -> str:
    """Returns a row of the table that tools/benchmarks/step.py prints."""
    middle, teraflop = statistics.median(secs), flops / 1e12
    low, high = min(secs) * 1e3, max(secs) * 1e3
    return (
        f"| {name} | {batch} | {middle * 1e3:.2f} ({low:.2f} to {high:.2f}) | "
        f"{batch / middle:,.1f} | {teraflop:.4g} | {teraflop / middle:.4g} | "
        "nan | nan |"
    )


def _target(size, device):
    corners = torch.rand(_NUM_BOXES, 2, device=device) * size / 2
    sides = 16 + torch.rand(_NUM_BOXES, 2, device=device) * (size / 2 - 16)
    labels = torch.randint(1, _NUM_CLASSES, [_NUM_BOXES], device=device)
    return {"boxes": torch.cat([corners, corners + sides], dim=1), "labels": labels}


def _flops(batch, size, device):
    """Returns what an uncompiled step multiplies and adds, backward pass included."""
    step = make_step(batch, size, "none", device)
    with flop_counter.FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--image_size", type=int, default=640)
    parser.add_argument(
        "--compile", choices=["whole", "parts", "none"], default="whole"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="in a round")
    parser.add_argument("--warm_up_steps", type=int, default=5)
    flags = parser.parse_args()
    is_cuda = flags.device == "cuda"
    hardware = torch.cuda.get_device_name() if is_cuda else "cpu"
    today = datetime.date.today().isoformat()
    print(
        f"{today}, {hardware}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, compile={flags.compile}\n"
    )
    for batch in flags.batch:
        flops = _flops(batch, flags.image_size, flags.device)
        step = make_step(batch, flags.image_size, flags.compile, flags.device)
        secs_per_step(step, flags.warm_up_steps, flags.device)
        secs = [
            secs_per_step(step, flags.steps, flags.device) for _ in range(flags.rounds)
        ]
        print(row("torchvision", batch, flops, secs), flush=True)


if __name__ == "__main__":
    main()
