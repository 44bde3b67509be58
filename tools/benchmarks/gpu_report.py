"""The results of tools/benchmarks/gpu.py: logs, shares of the peak, a table."""

import json
import pathlib
import re
import statistics
from collections.abc import Mapping
from typing import Any

# Dense bfloat16 FLOP/s by a part of PJRT's name of the device.
# Source: NVIDIA's data sheets of the H100 (SXM), H200 and A100.
_PEAKS = {"H100 80GB HBM3": 989.4e12, "H200": 989.4e12, "A100": 312e12}
_LOOP = re.compile(r"\[global_step (\d+)/(\d+)\].*\[([\d.]+) imgs/s\] (\{.*\})")


def summarize_training(log: str, evaluations: pathlib.Path) -> dict[str, Any]:
    """Returns the speed of a training from its log, and its last evaluation.

    Args:
      log: The log of the trainer.
      evaluations: The file of its evaluations.
    """
    loops = [match.groups() for match in map(_LOOP.search, log.splitlines()) if match]
    summary: dict[str, Any] = {}
    if loops:
        last = loops[-1]
        summary |= {"step": int(last[0]), "max_steps": int(last[1])}
        later = loops[1:] or loops  # The first loop is slower: buffers fill.
        rates = [float(rate) for _, _, rate, _ in later]
        waits = [
            float(w) for *_, s in later for w in re.findall(r"wait': ([\d.e-]+)", s)
        ]
        summary["images_per_sec"] = round(statistics.median(rates), 1)
        summary["input_wait"] = round(statistics.median(waits), 3) if waits else None
    if evaluations.exists():
        record = json.loads(evaluations.read_text().splitlines()[-1])
        names = ("global_step", "AP", "AP50", "AP75")
        summary["evaluation"] = {name: record.get(name) for name in names}
    return summary


def peak_flops(device_kind: str, peak_tflops: float | None) -> float | None:
    """Returns the dense bfloat16 peak of a device in FLOP/s, or None if unknown.

    Args:
      device_kind: PJRT's name of the device.
      peak_tflops: The peak in TFLOP/s that the user set; None for the table.
    """
    if peak_tflops:
        return peak_tflops * 1e12
    return next((p for name, p in _PEAKS.items() if name in device_kind), None)


def share(measured: Mapping[str, Any], peak_tflops: float | None) -> dict[str, Any]:
    """Returns the share of the peak that a step reaches.

    Args:
      measured: The measurement, from engine_step.py.
      peak_tflops: The peak in TFLOP/s that the user set; None for the table.
    """
    if "out_of_memory" in measured:
        return {}
    peak = peak_flops(measured["device_kind"], peak_tflops)
    share = peak and measured["tflop_per_sec"] * 1e12 / peak
    return {"share_of_peak": share}


def table(results: Mapping[str, Any]) -> str:
    """Returns the steps of a result as Markdown.

    Args:
      results: The content of result.json.
    """
    rows = [
        "| step | batch | ms/step | images/s | TFLOP/s | share of peak | compiled in s "
        "| peak MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("step", "torchvision"):
        for result in results.get(name, []):
            if "images_per_sec" not in result:
                reason = next(iter(result.keys() - {"batch_size", "secs"}), "-")
                rows.append(f"| {name} | {result.get('batch_size', '-')} | {reason} |"
                            " - | - | - | - | - |")  # fmt: skip
                continue
            share = result.get("share_of_peak")
            batch_size, rate = result["batch_size"], result["images_per_sec"]
            memory = result.get("memory_mb", {})
            cells = [
                name,
                f"{batch_size}",
                f"{1e3 * batch_size / rate:.2f}",
                f"{rate:,.1f}",
                f"{result['tflop_per_sec']:.4g}",
                "unknown" if share is None else f"{share:.1%}",
                f"{result.get('compile_secs', '-')}",
                f"{memory.get('peak', '-')}",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)
