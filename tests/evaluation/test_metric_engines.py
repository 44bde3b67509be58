import importlib.metadata
import os
import sys
import types

import numpy as np
import pytest

from retinanet_tpu import structures
from retinanet_tpu.evaluation import coco_metric, metric_engines

CATEGORY_IDS = (3, 2**60 + 1, 7, 2**60)  # Neither sorted nor exact as float64.


def random_set(seed, *, num_images=14, detections_per_image=12, decimals=1):
    """Returns annotations and detections with everything that COCO treats specially.

    Several images and the last category are empty. Boxes may be crowds, of size 0 or
    of an area that is not theirs and may be in no range. Scores have ties.
    """
    rng = np.random.default_rng(seed)
    image_ids = 2**60 + rng.permutation(num_images)
    annotations, rows = [], []
    for number, image_id in enumerate(image_ids.tolist()):
        boxes = 40 * rng.integers(0, 4, [rng.integers(0, 7), 2])
        boxes = np.hstack([boxes, rng.choice([0, 20, 60, 200], boxes.shape)])
        categories = rng.choice(CATEGORY_IDS[:-1], len(boxes)).tolist()
        for box, category_id in zip(boxes.tolist(), categories, strict=True):
            areas = [box[2] * box[3]] * 3 + [32**2, 96**2, 5000.5, 2e10]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": box,
                    "area": areas[rng.integers(len(areas))],
                    "iscrowd": int(rng.uniform() < 0.2),
                }
            )
        if number % 5 == 4 or not detections_per_image:
            continue
        for _ in range(detections_per_image):
            nearby = rng.integers(0, len(boxes)) if len(boxes) else None
            if nearby is None:
                box, category_id = [9, 9, 50, 50], rng.choice(CATEGORY_IDS)
            else:
                box, category_id = boxes[nearby], categories[nearby]
            noise = rng.normal(0, 3, 4) * (rng.uniform() < 0.7)
            score = np.round(rng.uniform(), decimals)
            rows.append((image_id, category_id, np.maximum(box + noise, 0), score))
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    ids, category_ids, boxes_xywh, scores = columns
    detected = metric_engines.DetectionColumns(
        np.array(ids, np.int64),
        np.array(category_ids, np.int64),
        np.array(boxes_xywh, np.float64).reshape(-1, 4),
        np.array(scores, np.float64),
    )
    truth = metric_engines.index(
        {
            "info": {},
            "images": [{"id": image_id} for image_id in image_ids.tolist()],
            "categories": [{"id": i, "name": f"class {i}"} for i in CATEGORY_IDS],
            "annotations": annotations,
        }
    )
    return truth, detected, sorted(image_ids.tolist())


def assert_same_bits(result, expected):
    np.testing.assert_array_equal(result.stats, expected.stats)
    np.testing.assert_array_equal(result.precision, expected.precision)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("decimals", [1, 9])
def test_hotcoco_has_the_bits_of_pycocotools(seed, decimals):
    pytest.importorskip("hotcoco")
    inputs = random_set(seed, decimals=decimals)
    expected = metric_engines.pycocotools_metrics(*inputs)
    assert 0.01 < expected.stats[0] < 0.99
    assert_same_bits(metric_engines.hotcoco_metrics(*inputs), expected)


@pytest.mark.parametrize(
    "sizes",
    [
        {"detections_per_image": 450, "num_images": 4},  # 100 of a class count.
        {"detections_per_image": 0},
        {"detections_per_image": 1, "num_images": 60},
        {"detections_per_image": 500, "num_images": 1},
    ],
)
def test_hotcoco_has_the_bits_of_pycocotools_at_unusual_sizes(sizes):
    pytest.importorskip("hotcoco")
    inputs = random_set(11, **sizes)
    if sizes["detections_per_image"] > 100:
        pairs = np.stack([inputs[1].image_ids, inputs[1].category_ids])
        assert np.unique(pairs, axis=1, return_counts=True)[1].max() > 100
    expected = metric_engines.pycocotools_metrics(*inputs)
    assert_same_bits(metric_engines.hotcoco_metrics(*inputs), expected)


def test_hotcoco_has_the_bits_of_pycocotools_on_some_of_the_images():
    pytest.importorskip("hotcoco")
    truth, detected, image_ids = random_set(3, num_images=30)
    whole = metric_engines.pycocotools_metrics(truth, detected, image_ids)
    for kept in (image_ids[::2], image_ids[:1], image_ids[4:7]):
        is_kept = np.isin(detected.image_ids, kept)
        columns = metric_engines.DetectionColumns(*(x[is_kept] for x in detected))
        expected = metric_engines.pycocotools_metrics(truth, columns, kept)
        assert not np.array_equal(expected.stats, whole.stats)
        assert_same_bits(metric_engines.hotcoco_metrics(truth, columns, kept), expected)


class Engine:
    """pycocotools under another name, with a planted fault, that counts its calls."""

    def __init__(self, name="fast 1.0", fault=None):
        self.name = name
        self.fault = fault
        self.calls = []

    def __call__(self, truth, detected, image_ids):
        self.calls.append(image_ids)
        result = metric_engines.pycocotools_metrics(truth, detected, image_ids)
        result = result._replace(engine=self.name)
        return self.fault(result) if self.fault else result


def engines(fault=None, **settings):
    fast, reference = Engine(fault=fault), Engine("reference 2.0")
    checked = metric_engines.CheckedEngine(fast, reference, **settings)
    return fast, reference, checked


def test_the_fast_engine_is_compared_once_and_then_used_alone(caplog):
    fast, reference, checked = engines()
    inputs = random_set(0)
    for _ in range(3):
        assert checked(*inputs).engine == "fast 1.0"
    assert (len(fast.calls), len(reference.calls)) == (3, 1)
    assert caplog.text == ""


def test_the_comparison_is_repeated_until_an_ap_is_above_zero():
    _, reference, checked = engines()
    for count, expected in [(0, 1), (0, 2), (12, 3), (12, 3)]:
        checked(*random_set(0, detections_per_image=count))
        assert len(reference.calls) == expected


def next_stat(result):
    stats = result.stats.copy()
    stats[7] = np.nextafter(stats[7], 1)
    return result._replace(stats=stats)


def next_precision(result):
    precision = result.precision.copy()
    precision[3, 50, 0, 0, 2] = np.nextafter(precision[3, 50, 0, 0, 2], 2)
    return result._replace(precision=precision)


@pytest.mark.parametrize("fault", [next_stat, next_precision])
@pytest.mark.parametrize("max_check_secs", [10.0, 0.003])
def test_a_difference_of_one_bit_is_an_error_and_ends_the_use(
    fault, max_check_secs, caplog
):
    fast, reference, checked = engines(fault, max_check_secs=max_check_secs)
    inputs = random_set(2)
    results = [checked(*inputs) for _ in range(2)]
    assert [result.engine for result in results] == ["reference 2.0"] * 2
    assert_same_bits(results[0], metric_engines.pycocotools_metrics(*inputs))
    num_compared = len(reference.calls[0])
    assert (num_compared < len(inputs[2])) == (max_check_secs < 1)
    assert fast.calls[-1] == reference.calls[0]
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelname == "ERROR"
    assert f"fast 1.0 and reference 2.0 differ on {num_compared} images" in message
    compared = [fast(*inputs), reference(*inputs)] if num_compared == 14 else []
    for result in compared:
        assert str(result.stats.tolist()) in message
    num_precisions = int(fault is next_precision)
    assert f"{num_precisions} of 48480 precisions, by at most " in message


def test_another_shape_is_a_difference(caplog):
    _, _, checked = engines(lambda r: r._replace(precision=r.precision[:5]))
    assert checked(*random_set(0)).engine == "reference 2.0"
    assert "shapes (5, 101, 4, 4, 3) and (10, 101, 4, 4, 3)" in caplog.text


class PanicException(BaseException):
    """As PyO3 raises it."""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such box"),
        ImportError("hotcoco.abi3.so: undefined symbol"),
        ModuleNotFoundError("No module named 'other'", name="other"),
        PanicException("index out of bounds"),
    ],
)
def test_an_exception_is_logged_and_ends_the_use(error, caplog):
    def fails(result):
        raise error

    fast, reference, checked = engines(fails)
    inputs = random_set(0)
    for _ in range(2):
        assert checked(*inputs).engine == "reference 2.0"
    assert (len(fast.calls), len(reference.calls)) == (1, 2)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and repr(error) in record.getMessage()


def test_an_interrupt_is_not_a_failure():
    def is_interrupted(result):
        raise KeyboardInterrupt

    fast, _, checked = engines(is_interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            checked(*random_set(0))
    assert len(fast.calls) == 2


def test_without_hotcoco_pycocotools_is_used_without_a_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    result = metric_engines.CheckedEngine()(*random_set(0))
    assert result.engine.startswith("pycocotools 2.")
    assert not [r for r in caplog.records if r.levelname != "INFO"]


def test_an_unusable_hotcoco_is_a_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "hotcoco", types.ModuleType("hotcoco"))
    result = metric_engines.CheckedEngine()(*random_set(0))
    assert result.engine.startswith("pycocotools 2.")
    assert "hotcoco failed" in caplog.text and "has no attribute 'COCO'" in caplog.text


def test_a_forked_process_uses_the_reference(monkeypatch, caplog):
    fast, _, checked = engines()
    inputs = random_set(0)
    assert checked(*inputs).engine == "fast 1.0"
    monkeypatch.setattr(os, "getpid", lambda: -1)
    for _ in range(2):
        assert checked(*inputs).engine == "reference 2.0"
    assert len(fast.calls) == 1
    assert caplog.text.count("is a fork") == 1


@pytest.mark.parametrize("name", ["hotcoco", "pycocotools"])
def test_the_result_names_the_engine_and_its_version(name):
    version = pytest.importorskip(name) and importlib.metadata.version(name)
    truth, detected, image_ids = random_set(0)
    engine_fn = getattr(metric_engines, f"{name}_metrics")
    assert engine_fn(truth, detected, image_ids).engine == f"{name} {version}"


def test_both_engines_evaluate_batches_equally():
    hotcoco = pytest.importorskip("hotcoco")
    truth, detected, image_ids = random_set(5)
    batches = []
    for image_id in image_ids:
        is_of_image = detected.image_ids == image_id
        x, y, width, height = detected.boxes_xywh[is_of_image].T
        detections = structures.Detections(
            np.stack([y, x, y + height, x + width], axis=-1)[None],
            detected.scores[is_of_image][None],
            detected.category_ids[is_of_image][None],
            np.array([np.sum(is_of_image)]),
        )
        batches.append((detections, np.array([image_id])))
    results = []
    for engine_fn in (
        metric_engines.pycocotools_metrics,
        metric_engines.hotcoco_metrics,
        metric_engines.CheckedEngine(),
    ):
        evaluator = coco_metric.Evaluator(truth, engine_fn)
        for batch in batches:
            evaluator.add(*batch)
        results.append(evaluator.result())
    names = [result.pop("metric_engine") for result in results]
    assert names[1:] == [f"hotcoco {hotcoco.__version__}"] * 2
    assert names[0].startswith("pycocotools ")
    assert results[0] == results[1] == results[2]
    assert results[0]["AP"] > 0
