"""Tests with a fake of sotabench's evaluator, and with the real one if installed."""

import importlib
import pathlib
import shutil
import sys
import types

import numpy as np
import PIL.Image
import pytest

import repository
import toy_data
from retinanet_tpu import errors, structures
from retinanet_tpu.data import category_map
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import artifacts

TOOLS = repository.ROOT / "tools"
NAMES = {"box AP": "AP", "AP50": "AP50", "AP75": "AP75", "APM": "APm", "APL": "APl"}


class Evaluator:
    """The interface of sotabencheval 0.0.38 that the tool uses, with its errors."""

    is_known = None  # None: not on the site's machines.

    def __init__(self, root, split, dataset_year, model_name, paper_arxiv_id):
        self.root, self.model = root, (model_name, paper_arxiv_id)
        path = f"{root}/annotations/instances_{split}{dataset_year}.json"
        self.coco = coco_metric.ground_truth(str(pathlib.Path(path).resolve(True)))
        self.added, self.num_resets = [], 0

    def reset_time(self):
        self.num_resets += 1

    def add(self, detections):
        assert isinstance(detections, list) and detections[0]["bbox"]
        self.added.append(list(detections))

    @property
    def cache_exists(self):
        if not self.added:
            raise ValueError("No batches of data have been processed")
        return self.is_known

    def save(self):
        by_image = {image_id: [] for image_id in self.coco.imgs}
        for added in self.added:
            for record in added:
                by_image[record["image_id"]].append(record)
        batches = [as_batch(*item) for item in by_image.items()]
        results = coco_metric.evaluate(batches, self.coco)
        return types.SimpleNamespace(results={k: results[v] for k, v in NAMES.items()})


def as_batch(image_id, records):
    x, y, width, height = np.array([r["bbox"] for r in records]).reshape(-1, 4).T
    detections = structures.Detections(
        np.stack([y, x, y + height, x + width], axis=-1)[None],
        np.array([[r["score"] for r in records]]),
        np.array([[r["category_id"] for r in records]]),
        np.array([len(records)]),
    )
    return detections, np.array([image_id])


@pytest.fixture(scope="module")
def coco_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    data_dir = pathlib.Path(toy_data.write(root / "data"))
    (root / "annotations").mkdir()
    shutil.copy(data_dir / "val.json", root / "annotations" / "instances_val2017.json")
    shutil.copytree(data_dir / "pictures", root / "val2017")
    return str(root)


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("sotabench")


@pytest.fixture
def fake_package(monkeypatch):
    package = types.ModuleType("sotabencheval")
    package.object_detection = types.SimpleNamespace(COCOEvaluator=Evaluator)
    monkeypatch.setitem(sys.modules, "sotabencheval", package)


def make_evaluator(tool, coco_root):
    return tool.make_evaluator(
        coco_root, "val", "2017", model_name="RetinaNet", paper_arxiv_id="1708.02002"
    )


def find_red(images):
    """Returns the box around all red pixels of each image."""
    boxes_yxyx, counts = np.zeros([len(images), 1, 4]), []
    for image, box in zip(images.astype(int), boxes_yxyx, strict=True):
        ys, xs = np.nonzero(image[..., 0] - image[..., 1:].max(axis=-1) > 100)
        if len(ys):
            box[0] = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
        counts.append(min(len(ys), 1))
    return structures.Detections(
        boxes_yxyx,
        np.full([len(images), 1], 0.75),
        np.full([len(images), 1], toy_data.CATEGORIES[0]["id"]),
        np.array(counts),
    )


def artifact_of(detect_fn, known=toy_data.CATEGORIES):
    return artifacts.Artifact("", "ONNX", category_map.from_coco(known), detect_fn)


def feed(tool, coco_root, evaluator, detect_fn=find_red, batch_size=1):
    return tool.feed(
        evaluator, artifact_of(detect_fn), f"{coco_root}/val2017", batch_size=batch_size
    )


def expected_results(coco_root):
    """Returns the results of our own metric for the same detections."""
    truth = coco_metric.ground_truth(f"{coco_root}/annotations/instances_val2017.json")
    batches = []
    for image_id, image in truth.imgs.items():
        pixels = PIL.Image.open(f"{coco_root}/val2017/{image['file_name']}")
        batches.append((find_red(np.array(pixels)[None]), np.array([image_id])))
    return coco_metric.evaluate(batches, truth)


def check_results(tool, coco_root):
    evaluator = make_evaluator(tool, coco_root)
    results = feed(tool, coco_root, evaluator)
    expected = expected_results(coco_root)
    assert expected["AP50"] > 0
    for theirs, ours in NAMES.items():
        assert results[theirs] == pytest.approx(expected[ours], abs=1e-12)
    return evaluator


def test_results_equal_those_of_our_metric(tool, coco_root, fake_package):
    evaluator = check_results(tool, coco_root)
    assert evaluator.model == ("RetinaNet", "1708.02002")
    assert evaluator.num_resets == 1


def test_results_of_sotabench_itself_equal_those_of_our_metric(tool, coco_root):
    pytest.importorskip("sotabencheval")
    check_results(tool, coco_root)


def test_first_detections_are_added_alone_and_the_rest_together(
    tool, coco_root, fake_package
):
    evaluator = make_evaluator(tool, coco_root)
    feed(tool, coco_root, evaluator)
    first, rest = evaluator.added
    assert len(first) == 1 and len(rest) > 1


def test_model_that_the_site_recognizes_is_stopped_early(
    tool, coco_root, fake_package, monkeypatch
):
    monkeypatch.setattr(Evaluator, "is_known", True)
    evaluator = make_evaluator(tool, coco_root)
    feed(tool, coco_root, evaluator)
    assert [len(added) for added in evaluator.added] == [1]


def test_model_without_detections_is_an_error(tool, coco_root, fake_package):
    def find_nothing(images):
        detections = find_red(images)
        return detections._replace(num_detections=detections.num_detections * 0)

    with pytest.raises(ValueError, match="has no detections"):
        feed(tool, coco_root, make_evaluator(tool, coco_root), find_nothing)


def test_failure_inside_sotabench_is_an_error_with_the_alternative(
    tool, coco_root, fake_package, monkeypatch
):
    def save(self):
        raise AttributeError("numpy has no attribute 'float'")

    monkeypatch.setattr(Evaluator, "save", save)
    message = (
        r"sotabencheval failed with AttributeError: .*retinanet-tpu evaluate_export"
    )
    with pytest.raises(ValueError, match=message):
        feed(tool, coco_root, make_evaluator(tool, coco_root))


def test_model_of_other_categories_is_refused(tool, coco_root, fake_package):
    other = artifact_of(find_red, [{"id": 1, "name": "cat"}])
    with pytest.raises(ValueError, match="differ in 3 categories"):
        tool.feed(make_evaluator(tool, coco_root), other, "", batch_size=1)


@pytest.mark.parametrize("content", ["{", '{"images": [], "categories": []}'])
def test_invalid_annotations_are_refused(
    tool, tmp_path, fake_package, monkeypatch, content
):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(content)
    with pytest.raises(errors.UserError, match=r"val2017\.json"):
        make_evaluator(tool, str(tmp_path))
    monkeypatch.setattr(Evaluator, "__init__", lambda self, root, **_: None)
    monkeypatch.setattr(Evaluator, "root", str(tmp_path), raising=False)
    with pytest.raises(errors.UserError, match=r"val2017\.json"):
        make_evaluator(tool, str(tmp_path))


def test_missing_annotations_and_missing_package_are_errors(
    tool, tmp_path, fake_package, monkeypatch
):
    with pytest.raises(ValueError, match=r"no annotations/instances_val2017\.json"):
        make_evaluator(tool, str(tmp_path))
    monkeypatch.setitem(sys.modules, "sotabencheval", None)
    with pytest.raises(ValueError, match=r"pip install --no-deps sotabencheval==0"):
        make_evaluator(tool, str(tmp_path))
