import contextlib
import io
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import coco as coco_lib, cocoeval

from retinanet_tpu import errors, structures
from retinanet_tpu.evaluation import coco_metric

CATEGORIES = [
    {"id": 3, "name": "cat"},
    {"id": 7, "name": "dog"},
    {"id": 90, "name": "emu"},
]


# The keys of a metric by class.
PER_CLASS = {"AP": "per_class", "AP50": "per_class_50", "AP75": "per_class_75"}


def annotation(image_id, category, xywh, **more):
    area = xywh[2] * xywh[3]
    record = {"image_id": image_id, "category_id": category, "bbox": xywh}
    return {**record, "area": area, "iscrowd": 0, **more}


def write(dataset, name="instances"):
    path = f"ram://coco_metric/{name}.json"
    if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)  # ram:// appends to a file that is opened to write.
    with tf.io.gfile.GFile(path, "w") as file:
        json.dump(dataset, file)
    return path


def read(annotations, *, image_ids, categories=CATEGORIES):
    images = [{"id": image_id} for image_id in image_ids]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    return coco_metric.ground_truth(write(dataset))


def batch(*per_image, depth=8):
    """Returns Detections of lists of (category, xywh, score), with invalid padding."""
    shape = (len(per_image), depth)
    boxes, scores = np.full((*shape, 4), 7.0, np.float32), np.ones(shape, np.float32)
    classes = np.full(shape, -5, np.int32)
    for row, objects in enumerate(per_image):
        for column, (category, (x, y, w, h), score) in enumerate(objects):
            boxes[row, column] = y, x, y + h, x + w
            scores[row, column], classes[row, column] = score, category
    counts = np.array([len(objects) for objects in per_image], np.int32)
    return structures.Detections(boxes, scores, classes, counts)


def perfect(truth, image_id):
    annotations = truth.imgToAnns[image_id]
    return [(a["category_id"], a["bbox"], 0.9) for a in annotations]


def random_case(seed, *, num_images=12):
    rng = np.random.default_rng(seed)
    annotations = []
    detected = []
    for image_id in range(num_images):
        detected.append([])
        for _ in range(rng.integers(0, 6)):
            xywh = [*rng.uniform(0, 300, 2), *rng.uniform(8, 150, 2)]
            category = int(rng.choice([3, 7, 90]))
            crowd = int(rng.uniform() < 0.15)
            annotations.append(
                annotation(image_id, category, xywh, id=len(annotations) + 1)
            )
            annotations[-1]["iscrowd"] = crowd
            if rng.uniform() < 0.8:
                noisy = [float(np.float32(v + rng.normal() * 4)) for v in xywh]
                detected[-1].append((category, noisy, round(rng.uniform(), 2)))
    return annotations, detected


def direct(truth_dataset, records):
    """Returns pycocotools' evaluator and its output, without our module."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_lib.COCO()
        truth.dataset = truth_dataset
        truth.createIndex()
        evaluator = cocoeval.COCOeval(truth, truth.loadRes(records), iouType="bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        evaluator.summarize()
    return evaluator, printed.getvalue()


def test_perfect_detections_score_one():
    annotations = [
        annotation(1, 3, [10.5, 20, 20, 20]),
        annotation(1, 7, [100, 50, 60.25, 60]),
        annotation(2, 3, [0, 0, 200, 200]),
    ]
    truth = read(annotations, image_ids=[1, 2])
    detections = batch(perfect(truth, 1), perfect(truth, 2))
    result = coco_metric.evaluate([(detections, np.array([1, 2]))], truth)
    assert list(result)[:12] == [metric.name for metric in coco_metric.METRICS]
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"):
        assert result[name] == pytest.approx(1.0), name
    assert result["per_class"] == {
        "cat": pytest.approx(1),
        "dog": pytest.approx(1),
        "emu": -1,
    }
    for key in ("per_class_50", "per_class_75"):
        assert result[key] == pytest.approx(result["per_class"])
    assert (result["num_images"], result["num_detections"]) == (2, 3)
    assert re.fullmatch(r"(hotcoco|pycocotools) \d[\d.]+", result["metric_engine"])


@pytest.mark.parametrize("seed", range(3))
def test_numbers_and_table_equal_pycocotools_called_directly(seed):
    annotations, detected = random_case(seed)
    truth = read(annotations, image_ids=range(12))
    batches = [(batch(*detected[i : i + 4]), np.arange(i, i + 4)) for i in (0, 4, 8)]
    result = coco_metric.evaluate(batches, truth)

    dataset = {"images": [{"id": i} for i in range(12)], "info": {}}
    dataset |= {"annotations": annotations, "categories": CATEGORIES}
    # xywh again from float32 corners, as the detections carry them.
    records = []
    for image_id, objects in enumerate(detected):
        for category, (x, y, w, h), score in objects:
            corners = np.array([x, y, x + w, y + h], np.float32).astype(np.float64)
            box = [*corners[:2], *(corners[2:] - corners[:2])]
            record = {"image_id": image_id, "category_id": category, "bbox": box}
            records.append({**record, "score": float(np.float32(score))})
    evaluator, printed = direct(dataset, records)
    ours = [result[metric.name] for metric in coco_metric.METRICS]
    np.testing.assert_array_equal(ours, evaluator.stats)
    assert 0.05 < result["AP"] < 0.95
    assert coco_metric.table(result) == printed.rstrip("\n")


def test_ap_of_a_class_equals_evaluating_it_alone():
    annotations, detected = random_case(5)
    truth = read(annotations, image_ids=range(12))
    ids = np.arange(12)
    whole = coco_metric.evaluate([(batch(*detected), ids)], truth)
    for category in CATEGORIES:
        alone = read(
            [a for a in annotations if a["category_id"] == category["id"]],
            image_ids=range(12),
            categories=[category],
        )
        objects = [[o for o in image if o[0] == category["id"]] for image in detected]
        result = coco_metric.evaluate([(batch(*objects), ids)], alone)
        for metric, key in PER_CLASS.items():
            assert result[metric] == whole[key][category["name"]]
    for metric, key in PER_CLASS.items():
        assert whole[metric] == pytest.approx(np.mean(list(whole[key].values())))


def test_ap_of_a_class_at_one_iou_ignores_worse_boxes():
    box = [0, 0, 100, 100]
    truth = read([annotation(1, c, box) for c in (3, 7, 90)], image_ids=[1])
    # The IoUs with the annotation are 0.9, 0.6 and 0.4.
    heights = ((3, 90), (7, 60), (90, 40))
    detections = batch([(c, [0, 0, 100, height], 0.9) for c, height in heights])
    result = coco_metric.evaluate([(detections, np.array([1]))], truth)
    assert result["per_class_50"] == pytest.approx({"cat": 1, "dog": 1, "emu": 0})
    assert result["per_class_75"] == pytest.approx({"cat": 1, "dog": 0, "emu": 0})
    assert result["per_class"] == pytest.approx({"cat": 0.9, "dog": 0.3, "emu": 0})


def test_detecting_half_of_the_objects_has_the_ap_computed_by_hand():
    truth = read(
        [annotation(1, 3, [0, 0, 50, 50]), annotation(1, 3, [200, 0, 50, 50])],
        image_ids=[1],
    )
    detections = batch([(3, [0, 0, 50, 50], 0.9)])
    result = coco_metric.evaluate([(detections, np.array([1]))], truth)
    # Precision is 1 at the recalls 0, .01, ..., .5 and 0 above.
    assert result["AP"] == pytest.approx(51 / 101)
    assert result["AR100"] == pytest.approx(0.5)


def test_boxes_keep_their_fractions():
    box = [10.6, 10.6, 8.7, 8.7]
    truth = read([annotation(1, 3, box)], image_ids=[1])
    ids = np.array([1])
    kept = coco_metric.evaluate([(batch([(3, box, 0.9)]), ids)], truth)
    whole_pixels = [int(value) for value in box]
    cut = coco_metric.evaluate([(batch([(3, whole_pixels, 0.9)]), ids)], truth)
    assert kept["AP"] == pytest.approx(1.0)
    assert cut["AP"] < 0.5


def test_detection_on_a_crowd_is_not_a_false_positive():
    annotations = [
        annotation(1, 3, [0, 0, 50, 50]),
        annotation(1, 3, [100, 100, 200, 200], iscrowd=1),
    ]
    first = (3, [120, 120, 30, 30], 0.95)
    detections = batch([first, (3, [0, 0, 50, 50], 0.9)])
    batches = [(detections, np.array([1]))]
    with_crowd = coco_metric.evaluate(batches, read(annotations, image_ids=[1]))
    without = coco_metric.evaluate(batches, read(annotations[:1], image_ids=[1]))
    assert with_crowd["AP"] == pytest.approx(1.0)
    assert without["AP"] == pytest.approx(0.5)


def test_no_detections_score_zero_and_areas_without_objects_minus_one():
    truth = read([annotation(1, 3, [0, 0, 50, 50])], image_ids=[1, 2])
    result = coco_metric.evaluate([(batch([], []), np.array([1, 2]))], truth)
    for name in ("AP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm"):
        assert result[name] == 0, name
    for name in ("APs", "APl", "ARs", "ARl"):
        assert result[name] == -1, name
    assert result["per_class"] == {"cat": 0.0, "dog": -1.0, "emu": -1.0}
    assert (result["num_images"], result["num_detections"]) == (2, 0)


def test_padding_images_do_not_count():
    truth = read([annotation(1, 3, [0, 0, 50, 50])], image_ids=[1])
    good, bad = [(3, [0, 0, 50, 50], 0.9)], [(3, [5, 100, 50, 50], 0.99)]
    ids = np.array([1, structures.PADDING_IMAGE, structures.PADDING_IMAGE])
    result = coco_metric.evaluate([(batch(good, bad, bad), ids)], truth)
    assert result["AP"] == pytest.approx(1.0)
    assert result["num_images"] == 1


def test_detections_of_an_output_without_a_category_do_not_count():
    truth = read([annotation(1, 3, [0, 0, 50, 50])], image_ids=[1])
    box = [0, 0, 50, 50]
    detections = batch([(-1, box, 0.99), (3, box, 0.9)])
    result = coco_metric.evaluate([(detections, np.array([1]))], truth)
    assert result["AP"] == pytest.approx(1.0)
    assert result["num_detections"] == 1


def test_false_positive_in_an_image_without_objects_counts():
    truth = read([annotation(1, 3, [0, 0, 50, 50])], image_ids=[1, 2])
    box = [0, 0, 50, 50]
    detections = batch([(3, box, 0.8)], [(3, box, 0.9)])
    result = coco_metric.evaluate([(detections, np.array([1, 2]))], truth)
    assert result["AP"] == pytest.approx(0.5)


def test_error_for_missing_images_contains_their_ids():
    truth = read([annotation(1, 3, [0, 0, 50, 50])], image_ids=range(1, 31))
    detections = batch([(3, [0, 0, 50, 50], 0.9)])
    message = "29 of 30 annotated images .* ids 2, 3, .* and 19 more"
    with pytest.raises(ValueError, match=message):
        coco_metric.evaluate([(detections, np.array([1]))], truth)


def test_partial_evaluation_counts_only_the_predicted_images():
    annotations = [annotation(i, 3, [0, 0, 50, 50]) for i in (1, 2)]
    truth = read(annotations, image_ids=[1, 2])
    batches = [(batch([(3, [0, 0, 50, 50], 0.9)]), np.array([1]))]
    result = coco_metric.evaluate(batches, truth, is_partial=True)
    assert result["AP"] == pytest.approx(1.0)
    assert result["num_images"] == 1
    with pytest.raises(ValueError, match="No image was predicted"):
        coco_metric.evaluate([], truth, is_partial=True)


@pytest.mark.parametrize(
    ("ids", "objects", "message"),
    [
        ([1, 1], [], "Image 1 was predicted twice"),
        ([1, 5], [], "Image 5 is not in the annotation file"),
        ([1, 2], [(12, [0, 0, 5, 5], 0.9)], "category ids 12; .* has 3, 7, 90"),
        ([1, 2], [(3, [0, 0, np.nan, 5], 0.9)], "Image 1 .* not finite"),
        ([1, 2], [(3, [0, 0, 5, 5], np.inf)], "Image 1 .* not finite"),
    ],
)
def test_detections_that_do_not_fit_the_file_are_rejected(ids, objects, message):
    truth = read([annotation(1, 3, [0, 0, 50, 50])], image_ids=[1, 2])
    with pytest.raises(ValueError, match=message):
        coco_metric.evaluate([(batch(objects, []), np.array(ids))], truth)


def test_evaluating_twice_has_the_same_result():
    annotations, detected = random_case(1)
    truth = read(annotations, image_ids=range(12))
    batches = [(batch(*detected), np.arange(12))]
    assert coco_metric.evaluate(batches, truth) == coco_metric.evaluate(batches, truth)


@pytest.mark.parametrize("ids", [(0, 1), (5, 5), (None, None)])
def test_annotation_ids_have_no_effect(ids):
    annotations = [annotation(1, 3, [i * 200, 0, 50, 50]) for i in (0, 1)]
    for record, number in zip(annotations, ids, strict=True):
        if number is not None:
            record["id"] = number
    truth = read(annotations, image_ids=[1])
    batches = [(batch(perfect(truth, 1)), np.array([1]))]
    assert coco_metric.evaluate(batches, truth)["AP"] == pytest.approx(1.0)


def test_absent_info_area_and_crowd_flag_are_filled_in():
    record = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 50]}
    truth = read([record], image_ids=[1])
    assert truth.dataset["info"] == {}
    assert (truth.anns[1]["area"], truth.anns[1]["iscrowd"]) == (2000, 0)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], "0 annotations"),
        ([annotation(1, 3, [0, 0, 5, 5], iscrowd=1)] * 2, "2 annotations, 2 of them"),
        ([annotation(1, 3, [0, 0, 1e6, 1e6])], "above 10000000000 px"),
        ([annotation(1, 3, [0, 0, 0, 9])], "without area"),
    ],
)
def test_file_without_anything_to_match_is_rejected(annotations, message):
    with pytest.raises(errors.UserError, match=f"no annotation that .*{message}"):
        read(annotations, image_ids=[1])


@pytest.mark.parametrize("area", [0, 1, -5, 1e9, "big", None, "", float("nan")])
def test_area_that_does_not_fit_its_box_is_replaced_by_that_of_the_box(area, caplog):
    box = [0, 0, 200, 200]
    annotations = [annotation(1, 3, box, area=area), annotation(1, 7, box, area=9e3)]
    truth = read(annotations, image_ids=[1])
    result = coco_metric.evaluate([(batch(perfect(truth, 1)), [1])], truth)
    # The second is medium by its outline, the first large by its box.
    values = [result[name] for name in ("APs", "APm", "APl")]
    assert values == pytest.approx([-1, 1, 1])
    is_absent = area in (None, "")
    assert ("1 of 2 areas do not fit their box" in caplog.text) != is_absent


@pytest.mark.parametrize("flag", ["0", "false", False, 0.0, None, ""])
def test_crowd_flag_may_have_several_forms(flag):
    objects = [annotation(1, 3, [0, 0, 50, 50], iscrowd=flag)]
    truth = read(objects, image_ids=[1])
    result = coco_metric.evaluate([(batch(perfect(truth, 1)), [1])], truth)
    assert result["AP"] == pytest.approx(1)
    crowd = annotation(1, 3, [60, 60, 50, 50], iscrowd="true")
    assert read([*objects, crowd], image_ids=[1]).anns[2]["iscrowd"] == 1


def test_invalid_crowd_flag_is_rejected():
    with pytest.raises(
        ValueError, match=r"annotation 1 has iscrowd 2; expected 0 or 1"
    ):
        read([annotation(1, 3, [0, 0, 50, 50], iscrowd=2)], image_ids=[1])


def test_nothing_is_printed(capsys):
    truth = read([annotation(1, 3, [0, 0, 50, 50])], image_ids=[1])
    coco_metric.evaluate([(batch([]), np.array([1]))], truth)
    assert capsys.readouterr().out == ""


def test_per_class_table_is_sorted_down_the_columns():
    result = {
        "per_class": {"ant": 0.25, "bee": -1.0, "crow": 0.5},
        "per_class_50": {"ant": 0.45, "bee": -1.0, "crow": 1.0},
        "per_class_75": {"ant": 0.35, "bee": -1.0, "crow": 0.0},
    }
    assert coco_metric.per_class_table(result, columns=2).splitlines() == [
        "        AP  AP50  AP75 |         AP  AP50  AP75",
        "crow 0.500 1.000 0.000 | bee      -     -     -",
        "ant  0.250 0.450 0.350",
    ]


def test_detection_records_are_coco_results():
    boxes = np.array([[20.5, 10.25, 40.5, 30.5]], np.float32)
    records = coco_metric.detection_records(boxes, np.float32([0.5]), [7], np.int64(9))
    expected = {"image_id": 9, "category_id": 7, "bbox": [10.25, 20.5, 20.25, 20.0]}
    assert records == [{**expected, "score": 0.5}]
    assert json.loads(json.dumps(records)) == records
    nothing = np.zeros([0, 4], np.float32)
    assert coco_metric.detection_records(nothing, [], [], 9) == []
