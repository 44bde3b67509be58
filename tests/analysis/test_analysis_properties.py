import json

import numpy as np
import pytest

from retinanet_tpu import analyze as analyze_command, errors, structures
from retinanet_tpu.analysis import (
    analyze,
    arrays,
    error_types,
    image_detections,
    matching,
    page,
    page_html,
    page_verdict,
    results,
    thresholds,
)
from retinanet_tpu.evaluation import coco_metric

NAMES = {1: "cat", 2: "dog", 5: "never annotated"}


def truth_of(tmp_path, objects, *, num_images=2, folders=("a",)):
    """Returns annotations of (image id, category id, box yxyx, is_crowd)."""
    content = {
        "images": [
            {
                "id": i,
                "width": 640,
                "height": 480,
                "file_name": f"{folders[i % len(folders)]}/{i}.jpg",
            }
            for i in range(1, num_images + 1)
        ],
        "categories": [{"id": i, "name": name} for i, name in NAMES.items()],
        "annotations": [
            {
                "image_id": image_id,
                "category_id": category,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": int(is_crowd),
            }
            for image_id, category, (y0, x0, y1, x1), is_crowd in objects
        ],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    return coco_metric.ground_truth(str(path))


def found(image_id, *rows):
    """Returns the detections (category id, box yxyx, score) of an image."""
    categories, boxes, scores = zip(*rows, strict=True)
    return image_detections.ImageDetections(
        image_id, np.array(boxes, float), np.array(scores), np.array(categories)
    )


def random_set(seed, tmp_path, *, num_images=12, num_boxes=6, num_detections=130):
    """Returns annotations and detections with crowds, ties and empty images."""
    rng = np.random.default_rng(seed)
    objects, detections = [], []
    for image_id in range(1, num_images + 1):
        corner = rng.integers(0, 300, [num_boxes, 2])
        size = rng.integers(4, 160, [num_boxes, 2])
        boxes = np.concatenate([corner, corner + size], axis=1)[
            : rng.integers(0, num_boxes + 1)
        ]
        objects += [
            (image_id, int(rng.choice([1, 2])), box.tolist(), rng.uniform() < 0.2)
            for box in boxes
        ]
        if image_id % 5 == 0 or not len(boxes):
            continue
        count = num_detections if image_id == 1 else int(rng.integers(1, 12))
        rows = [
            (
                int(rng.choice([1, 2])),
                boxes[rng.integers(len(boxes))] + rng.normal(0, 8, 4).round(1),
                float(rng.integers(1, 20) / 20),
            )
            for _ in range(count)
        ]
        rows = [(c, np.sort(b.reshape(2, 2), axis=0).ravel(), s) for c, b, s in rows]
        detections.append(found(image_id, *rows))
    return truth_of(tmp_path, objects, num_images=num_images), detections


def metrics_of(truth, detections):
    """Returns the metrics of the package's evaluation of the same detections."""
    by_id = {image.image_id: image for image in detections}
    batches = []
    for image_id in truth.imgs:
        image = by_id.get(image_id)
        count = 0 if image is None else len(image.scores)
        order = np.arange(count)
        batch = structures.Detections(
            image.boxes_yxyx[order][None] if count else np.zeros([1, 0, 4]),
            image.scores[order][None] if count else np.zeros([1, 0]),
            image.category_ids[order][None] if count else np.zeros([1, 0], int),
            np.array([count]),
        )
        batches.append((batch, np.array([image_id])))
    return coco_metric.evaluate(batches, truth)


@pytest.mark.parametrize("seed", range(6))
def test_the_metrics_are_those_of_the_evaluation(seed, tmp_path):
    truth, detections = random_set(seed, tmp_path)
    expected = metrics_of(truth, detections)
    analysis = analyze.analyze(truth, detections)
    for metric in coco_metric.METRICS:
        assert analysis.metrics[metric.name] == expected[metric.name], metric.name
    for result in analysis.classes:
        assert result.ap == expected["per_class"][result.name]
        assert result.ap50 == expected["per_class_50"][result.name]
        assert result.ap75 == expected["per_class_75"][result.name]
    assert analysis.all_classes.ap == pytest.approx(expected["AP"], abs=1e-12)
    sizes = {
        g.name.split(":")[0]: g.ap for g in analysis.groups if g.dimension == "size"
    }
    for name, metric in (("small", "APs"), ("medium", "APm"), ("large", "APl")):
        assert sizes.get(name, -1) == pytest.approx(expected[metric], abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_curves_agree_with_a_plain_count(seed, tmp_path):
    truth, detections = random_set(seed, tmp_path)
    data = arrays.collect(truth, detections, None)
    matches = matching.match(data)
    curve = analyze.analyze(truth, detections).all_classes.curve
    num_objects = sum(not a["iscrowd"] for a in truth.anns.values())
    rows = zip(curve.thresholds, curve.precision, curve.recall, curve.f1, strict=True)
    for threshold, precision, recall, f1 in rows:
        is_above = data.found.score >= threshold
        correct = (matches.is_correct[0] & is_above).sum()
        wrong = (matches.is_wrong[0] & is_above).sum()
        assert recall == correct / num_objects
        assert precision == (correct / (correct + wrong) if correct + wrong else 1)
        assert f1 == pytest.approx(2 * correct / (correct + wrong + num_objects))


@pytest.mark.parametrize("seed", range(4))
def test_correcting_all_errors_gives_a_perfect_score(seed, tmp_path):
    truth, detections = random_set(seed, tmp_path)
    data = arrays.collect(truth, detections, None)
    matches = matching.match(data)
    types = error_types.classify(data, matches)
    fixed = error_types.corrected_ap50(data, matches, types, results.ERROR_KINDS)
    assert fixed == pytest.approx(1)
    analysis = analyze.analyze(truth, detections)
    assert [cost.kind for cost in analysis.errors] == list(results.ERROR_KINDS)
    num_wrong = int(matches.is_wrong[0].sum())
    counts = {cost.kind: cost.num_errors for cost in analysis.errors}
    assert sum(counts.values()) - counts["missed"] == num_wrong
    for cost in analysis.errors:
        assert cost.ap50_cost >= -1e-9 and (cost.num_errors or cost.ap50_cost == 0)


@pytest.mark.parametrize("seed", range(4))
def test_the_confusion_counts_every_object_once(seed, tmp_path):
    truth, detections = random_set(seed, tmp_path)
    confusion = analyze.analyze(truth, detections).confusion
    objects = [a["category_id"] for a in truth.anns.values() if not a["iscrowd"]]
    rows = confusion.counts[:-1].sum(axis=1)
    assert rows.tolist() == [objects.count(i) for i in NAMES]
    assert confusion.counts[-1, -1] == 0


BOX = [100, 100, 200, 200]
SHIFTED = [100, 160, 200, 260]  # IoU 0.25 with BOX.
FAR = [300, 400, 400, 500]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, BOX, 0.9)], {}),
        ([(2, BOX, 0.9)], {"class": 1}),
        ([(1, SHIFTED, 0.9)], {"localization": 1}),
        ([(2, SHIFTED, 0.9)], {"both": 1, "missed": 1}),
        ([(1, BOX, 0.9), (1, BOX, 0.8)], {"duplicate": 1}),
        ([(1, BOX, 0.9), (1, FAR, 0.8)], {"background": 1}),
        ([(1, FAR, 0.8)], {"background": 1, "missed": 1}),
    ],
)
def test_each_kind_of_errors_is_recognized(tmp_path, rows, expected):
    truth = truth_of(tmp_path, [(1, 1, BOX, False)])
    analysis = analyze.analyze(truth, [found(1, *rows)])
    counts = {cost.kind: cost.num_errors for cost in analysis.errors}
    assert {kind: count for kind, count in counts.items() if count} == expected


def test_detections_in_a_crowd_are_no_errors(tmp_path):
    objects = [(1, 1, BOX, False), (1, 1, [250, 0, 480, 640], True)]
    analysis = analyze.analyze(
        truth_of(tmp_path, objects), [found(1, (1, BOX, 0.9), (1, FAR, 0.95))]
    )
    assert analysis.metrics["AP"] == pytest.approx(1)
    assert sum(cost.num_errors for cost in analysis.errors) == 0
    assert {box.kind for box in analysis.images[0].objects} <= {"found", "crowd"}


def test_without_detections_every_object_is_missed(tmp_path):
    truth = truth_of(tmp_path, [(1, 1, BOX, False), (2, 2, BOX, False)])
    analysis = analyze.analyze(truth, [])
    assert analysis.metrics["AP"] == 0 and analysis.all_classes.num_detections == 0
    assert {c.kind: c.num_errors for c in analysis.errors}["missed"] == 2
    assert not analysis.label_issues
    assert thresholds.best_thresholds(thresholds.curves_at_50(truth, [])) == {}


def test_without_a_correct_detection_there_is_no_threshold(tmp_path):
    truth = truth_of(tmp_path, [(1, 1, BOX, False)])
    analysis = analyze.analyze(truth, [found(1, (1, FAR, 0.9), (2, FAR, 0.8))])
    assert analysis.all_classes.curve.best_threshold is None
    assert analysis.confusion.threshold == 0
    assert len(analysis.images[0].detections) == 2
    text = " ".join(page_verdict.sentences(analysis))
    assert "At a score of" not in text and "AP is 0.000" in text
    page_html.write(str(tmp_path / "page.html"), page.html(analysis, title="a"))
    assert "There are no errors" not in (tmp_path / "page.html").read_text()
    assert "no detection is correct" in analyze_command.summarize(analysis)


def test_images_without_an_annotated_size_are_shown_whole(tmp_path):
    truth = truth_of(tmp_path, [(1, 1, BOX, False)])
    for image in truth.imgs.values():
        image.update({"width": None, "height": "?", "file_name": None})
    analysis = analyze.analyze(truth, [found(1, (1, FAR, 0.9))])
    path = tmp_path / "page.html"
    page_html.write(str(path), page.html(analysis, title="a"))
    assert "viewBox='0 0 500 400'" in path.read_text()  # The largest edges.
    pixels = np.zeros([480, 640, 3], np.uint8)
    page_html.write(
        str(path), page.html(analysis, title="a", image_fn=lambda _: pixels)
    )
    text = path.read_text()
    assert "viewBox='0 0 640 480'" in text and ">None<" not in text


def test_a_confident_detection_without_an_object_is_a_suspected_label(tmp_path):
    truth = truth_of(tmp_path, [(1, 1, BOX, False), (2, 1, BOX, False)])
    detections = [
        found(1, (1, BOX, 0.8), (1, FAR, 0.9)),
        found(2, (1, BOX, 0.8)),
    ]
    (issue,) = analyze.analyze(truth, detections).label_issues
    assert (issue.image_id, issue.reason, issue.annotated) == (1, "missing label", None)
    assert issue.detection.score == 0.9


def test_the_worst_images_are_first(tmp_path):
    truth = truth_of(tmp_path, [(1, 1, BOX, False), (2, 1, BOX, False)])
    images = analyze.analyze(truth, [found(1, (1, BOX, 0.9))]).images
    assert [(image.image_id, image.f1) for image in images] == [(2, 0), (1, 1)]
    assert images[0].file_name == "a/2.jpg" and images[0].width == 640


def test_the_calibration_error_is_the_distance_of_score_and_precision(tmp_path):
    truth = truth_of(tmp_path, [(1, 1, BOX, False)])
    rows = [(1, BOX, 0.9), (1, FAR, 0.9), (1, FAR, 0.31)]
    analysis = analyze.analyze(truth, [found(1, *rows)])
    filled = [b for b in analysis.calibration if b.num_detections]
    assert [(b.num_detections, b.precision) for b in filled] == [(1, 0.0), (2, 0.5)]
    expected = (0.31 * 1 + (0.9 - 0.5) * 2) / 3
    assert analysis.calibration_error == pytest.approx(expected)


def test_several_sources_of_images_are_groups(tmp_path):
    objects = [(i, 1, BOX, False) for i in (1, 2)]
    truth = truth_of(tmp_path, objects, num_images=3, folders=("day", "night"))
    analysis = analyze.analyze(truth, [found(1, (1, BOX, 0.9))])
    groups = {g.name: g.ap for g in analysis.groups if g.dimension == "source"}
    assert groups == {"night": pytest.approx(1), "day": 0}


def test_the_best_threshold_separates_right_from_wrong(tmp_path):
    truth = truth_of(tmp_path, [(1, 1, BOX, False), (2, 2, BOX, False)])
    detections = [
        found(1, (1, BOX, 0.8), (1, FAR, 0.3)),
        found(2, (2, BOX, 0.6), (2, FAR, 0.55)),
    ]
    best = thresholds.best_thresholds(thresholds.curves_at_50(truth, detections))
    assert best["best_f1"] == 1 and 0.55 < best["best_threshold"] <= 0.6
    assert 0.3 < best["per_class_threshold"]["cat"] <= 0.8
    assert set(best["per_class_threshold"]) == {"cat", "dog"}


GOOD = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "expected a list of detections"),
        ([GOOD, 3], r"entry \[1\] is 3; expected an object"),
        ([{"image_id": 1}], r"entry \[0\] lacks category_id, bbox, score"),
        ([GOOD | {"image_id": 9}], r"entry \[0\] has image_id 9"),
        ([GOOD | {"category_id": 3}], r"entry \[0\] has category_id 3"),
        ([GOOD | {"bbox": [1, 2, 3]}], r"entry \[0\] has bbox"),
        ([GOOD | {"bbox": [1, 2, -3, 4]}], r"entry \[0\] has bbox"),
        ([GOOD | {"bbox": [1e308, 0, 1e308, 1]}], r"entry \[0\] has bbox"),
        ([GOOD | {"bbox": [10**400, 0, 1, 1]}], r"entry \[0\] has bbox"),
        ([GOOD | {"score": float("nan")}], r"entry \[0\] has score nan"),
        ([GOOD | {"score": 50}], r"Divide percentages by 100"),
    ],
)
def test_an_invalid_results_file_is_an_error_with_its_entry(tmp_path, content, message):
    truth = truth_of(tmp_path, [(1, 1, BOX, False)])
    with pytest.raises(errors.UserError, match=message):
        image_detections.parse_results(content, "results.json", truth)


def test_a_results_file_is_read(tmp_path):
    truth = truth_of(tmp_path, [(1, 1, BOX, False)])
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD, GOOD | {"image_id": 2}]))
    first, second = image_detections.read_results(str(path), truth)
    assert (first.image_id, second.image_id) == (1, 2)
    assert first.boxes_yxyx.tolist() == [[2, 1, 6, 4]] and first.scores[0] == 0.5


def test_an_image_that_is_there_twice_is_an_error(tmp_path):
    truth = truth_of(tmp_path, [(1, 1, BOX, False)])
    image = found(1, (1, BOX, 0.9))
    with pytest.raises(errors.UserError, match="1"):
        analyze.analyze(truth, [image, image])
