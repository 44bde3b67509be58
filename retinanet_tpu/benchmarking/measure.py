"""Measures several models in turn.

All models are loaded, then each detects in all images, then they are timed: a round
measures each model for a short time, and the next round follows. Other programs on the
machine therefore slow all models alike.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from absl import logging

from retinanet_tpu import errors, structures
from retinanet_tpu.benchmarking import candidates, images as images_module, worker
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import parity

Value = TypeVar("Value")
StartFn = Callable[[candidates.Candidate], worker.Model]
# The detections of a model by image id, each as a batch of one.
_Detections = Mapping[int, structures.Detections]

# The tolerance of an int8 export: a box is the same one if its class is equal, the IoU
# at least 0.5 and the score within 0.1.
TOLERANCE = parity.Tolerance(iou=0.5, score=0.1)


class Plan(NamedTuple):
    """The amount of work.

    Attributes:
      batch_sizes: The numbers of images of the timed batches.
      num_rounds: The number of rounds.
      turn_secs: How long each model is timed in a round, per batch size.
    """

    batch_sizes: Sequence[int]
    num_rounds: int
    turn_secs: float


@dataclasses.dataclass(frozen=True)
class Result:
    """The measurements of a model. Those after an error are missing.

    Attributes:
      candidate: The model.
      error: The text of the error; None without one.
      loaded: The time until the model was ready.
      metrics: COCO's metrics, see `coco_metric.evaluate`; None without annotations.
      drift: The comparison with the reference; None without one, and for the reference.
      is_reference: Whether others are compared with this model.
      turns: The turn of each round, by batch size.
      memory_mb: The peak memory since before the load; None if it is unknown.
    """

    candidate: candidates.Candidate
    error: str | None = None
    loaded: worker.Loaded | None = None
    metrics: Mapping[str, Any] | None = None
    drift: parity.ParityReport | None = None
    is_reference: bool = False
    turns: Mapping[int, Sequence[worker.Turn]] = dataclasses.field(default_factory=dict)
    memory_mb: float | None = None


class _Group:
    """The models that have not failed, and the errors of the others."""

    def __init__(self) -> None:
        self.models: dict[candidates.Candidate, worker.Model] = {}
        self.errors: dict[candidates.Candidate, str] = {}

    def attempt(
        self, candidate: candidates.Candidate, fn: Callable[..., Value], *arguments: Any
    ) -> dict[candidates.Candidate, Value]:
        """Returns the value of a function by candidate.

        After an error the result is empty, and the model is ended.
        """
        try:
            return {candidate: fn(*arguments)}
        except errors.UserError as error:
            logging.error("benchmark | %s failed: %s", candidate.name, error)
            self.errors[candidate] = str(error)
            if model := self.models.pop(candidate, None):
                model.close()
            return {}

    def each(
        self, fn: Callable[[worker.Model], Value]
    ) -> dict[candidates.Candidate, Value]:
        """Returns the value of each model; those that fail are dropped."""
        values: dict[candidates.Candidate, Value] = {}
        for candidate, model in list(self.models.items()):
            values |= self.attempt(candidate, fn, model)
        return values

    def close(self) -> None:
        """Ends all models."""
        for model in self.models.values():
            model.close()


def run(
    models: Sequence[candidates.Candidate],
    images: images_module.Images,
    plan: Plan,
    *,
    start_fn: StartFn,
) -> list[Result]:
    """Measures models; an error of one does not stop the others.

    Args:
      models: The models. Those that are not runnable have an empty result.
      images: The images.
      plan: The amount of work.
      start_fn: Starts the process of a model.
    Returns:
      The result of each model.
    """
    group = _Group()
    try:
        loaded = _load([x for x in models if x.is_runnable], images, group, start_fn)
        detected = group.each(lambda model: model.detect(images.files))
        metrics = _evaluate(detected, images, group)
        turns = _measure(plan, group)
        memory_mb = group.each(lambda model: model.memory_mb())
    finally:
        group.close()
    references = {x: _reference(x, models) for x in models}
    return [
        Result(
            candidate,
            group.errors.get(candidate),
            loaded.get(candidate),
            metrics.get(candidate),
            _drift(detected, candidate, references[candidate]),
            candidate in references.values(),
            turns.get(candidate, {}),
            memory_mb.get(candidate),
        )
        for candidate in models
    ]


def _load(
    models: Iterable[candidates.Candidate],
    images: images_module.Images,
    group: _Group,
    start_fn: StartFn,
) -> dict[candidates.Candidate, worker.Loaded]:
    """Starts and loads the models one by one."""

    def load(candidate: candidates.Candidate) -> worker.Loaded:
        group.models[candidate] = start_fn(candidate)
        return group.models[candidate].load(images.timed)

    results: dict[candidates.Candidate, worker.Loaded] = {}
    for candidate in models:
        logging.info("benchmark | loading %s %s", candidate.name, candidate.path)
        results |= group.attempt(candidate, load, candidate)
    return results


def _evaluate(
    detected: Mapping[candidates.Candidate, _Detections],
    images: images_module.Images,
    group: _Group,
) -> dict[candidates.Candidate, Mapping[str, Any]]:
    """Returns COCO's metrics of each model; {} without annotations."""
    results: dict[candidates.Candidate, Mapping[str, Any]] = {}
    if images.truth is None:
        return results
    for candidate, detections in detected.items():
        batches = [(x, np.array([image_id])) for image_id, x in detections.items()]
        results |= group.attempt(candidate, coco_metric.evaluate, batches, images.truth)
    return results


def _measure(
    plan: Plan, group: _Group
) -> dict[candidates.Candidate, dict[int, list[worker.Turn]]]:
    """Times the models in rounds; each round starts with the next model."""
    results: dict[candidates.Candidate, dict[int, list[worker.Turn]]] = {}
    for number in range(plan.num_rounds):
        for batch_size in plan.batch_sizes:
            names = list(group.models)
            first = number % max(1, len(names))
            for candidate in names[first:] + names[:first]:
                measured = group.attempt(
                    candidate,
                    group.models[candidate].measure,
                    batch_size,
                    plan.turn_secs,
                )
                for turn in measured.values():
                    turns = results.setdefault(candidate, {})
                    turns.setdefault(batch_size, []).append(turn)
                    logging.info(
                        "benchmark | round %d of %d | batch %d | %s | %.1f ms",
                        *(number + 1, plan.num_rounds, batch_size, candidate.name),
                        1e3 * statistics.median(turn.secs),
                    )
    return results


def _reference(
    candidate: candidates.Candidate, models: Sequence[candidates.Candidate]
) -> candidates.Candidate | None:
    """Returns the checkpoint, or else the SavedModel of the same export."""
    for other in models:
        if other.is_checkpoint:
            return other
    for other in models:
        if other.is_saved_model and other.directory == candidate.directory:
            return other
    return None


def _drift(
    detected: Mapping[candidates.Candidate, _Detections],
    candidate: candidates.Candidate,
    reference: candidates.Candidate | None,
) -> parity.ParityReport | None:
    """Compares a model with its reference, if both have detections."""
    actual = detected.get(candidate)
    expected = detected.get(reference) if reference else None
    if actual is None or expected is None or candidate == reference:
        return None
    pairs = [(actual[image_id], expected[image_id]) for image_id in expected]
    return parity.compare([x for x, _ in pairs], [x for _, x in pairs], TOLERANCE)
