"""With a stand-in of sotabench's evaluator, and with itself where it is installed."""

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
    """What the tool uses of sotabencheval 0.0.38, and how that can refuse."""

    is_known = None  # None: this is not the site's machine.

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
        found = {image_id: [] for image_id in self.coco.imgs}
        for added in self.added:
            for record in added:
                found[record["image_id"]].append(record)
        batches = [as_batch(*item) for item in found.items()]
        results = coco_metric.evaluate(batches, self.coco)
        return types.SimpleNamespace(results={k: results[v] for k, v in NAMES.items()})


def as_batch(image_id, records):
    x, y, width, height = np.array([r["bbox"] for r in records]).reshape(-1, 4).T
    found = structures.Detections(
        np.stack([y, x, y + height, x + width], axis=-1)[None],
        np.array([[r["score"] for r in records]]),
        np.array([[r["category_id"] for r in records]]),
        np.array([len(records)]),
    )
    return found, np.array([image_id])


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
def stand_in(monkeypatch):
    package = types.ModuleType("sotabencheval")
    package.object_detection = types.SimpleNamespace(COCOEvaluator=Evaluator)
    monkeypatch.setitem(sys.modules, "sotabencheval", package)


def make_evaluator(tool, coco_root):
    return tool.make_evaluator(
        coco_root, "val", "2017", model_name="RetinaNet", paper_arxiv_id="1708.02002"
    )


def find_red(pictures):
    """Finds the box around all that is red in each image."""
    boxes_yxyx, counts = np.zeros([len(pictures), 1, 4]), []
    for picture, box in zip(pictures.astype(int), boxes_yxyx, strict=True):
        ys, xs = np.nonzero(picture[..., 0] - picture[..., 1:].max(axis=-1) > 100)
        if len(ys):
            box[0] = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
        counts.append(min(len(ys), 1))
    return structures.Detections(
        boxes_yxyx,
        np.full([len(pictures), 1], 0.75),
        np.full([len(pictures), 1], toy_data.CATEGORIES[0]["id"]),
        np.array(counts),
    )


def artifact_of(detect_fn, known=toy_data.CATEGORIES):
    return artifacts.Artifact("", "ONNX", category_map.from_coco(known), detect_fn)


def feed(tool, coco_root, evaluator, detect_fn=find_red, batch_size=1):
    return tool.feed(
        evaluator, artifact_of(detect_fn), f"{coco_root}/val2017", batch_size=batch_size
    )


def expected_results(coco_root):
    """Returns what our own metric makes of the same findings."""
    truth = coco_metric.ground_truth(f"{coco_root}/annotations/instances_val2017.json")
    batches = []
    for image_id, image in truth.imgs.items():
        picture = PIL.Image.open(f"{coco_root}/val2017/{image['file_name']}")
        batches.append((find_red(np.array(picture)[None]), np.array([image_id])))
    return coco_metric.evaluate(batches, truth)


def check_results(tool, coco_root):
    evaluator = make_evaluator(tool, coco_root)
    results = feed(tool, coco_root, evaluator)
    expected = expected_results(coco_root)
    assert expected["AP50"] > 0
    for theirs, ours in NAMES.items():
        assert results[theirs] == pytest.approx(expected[ours], abs=1e-12)
    return evaluator


def test_results_are_those_of_our_metric(tool, coco_root, stand_in):
    evaluator = check_results(tool, coco_root)
    assert evaluator.model == ("RetinaNet", "1708.02002")
    assert evaluator.num_resets == 1


def test_sotabench_itself_computes_what_our_metric_computes(tool, coco_root):
    pytest.importorskip("sotabencheval")
    check_results(tool, coco_root)


def test_first_findings_come_alone_and_the_rest_at_once(tool, coco_root, stand_in):
    evaluator = make_evaluator(tool, coco_root)
    feed(tool, coco_root, evaluator)
    first, rest = evaluator.added
    assert len(first) == 1 and len(rest) > 1


def test_model_that_the_site_knows_is_not_run_to_the_end(
    tool, coco_root, stand_in, monkeypatch
):
    monkeypatch.setattr(Evaluator, "is_known", True)
    evaluator = make_evaluator(tool, coco_root)
    feed(tool, coco_root, evaluator)
    assert [len(added) for added in evaluator.added] == [1]


def test_model_that_finds_nothing_is_not_scored(tool, coco_root, stand_in):
    def find_nothing(pictures):
        found = find_red(pictures)
        return found._replace(num_detections=found.num_detections * 0)

    with pytest.raises(ValueError, match="finds nothing"):
        feed(tool, coco_root, make_evaluator(tool, coco_root), find_nothing)


def test_failure_inside_sotabench_says_what_works_instead(
    tool, coco_root, stand_in, monkeypatch
):
    def save(self):
        raise AttributeError("numpy has no attribute 'float'")

    monkeypatch.setattr(Evaluator, "save", save)
    message = (
        r"sotabencheval failed with AttributeError: .*retinanet-tpu evaluate_export"
    )
    with pytest.raises(ValueError, match=message):
        feed(tool, coco_root, make_evaluator(tool, coco_root))


def test_model_of_other_categories_is_refused(tool, coco_root, stand_in):
    other = artifact_of(find_red, [{"id": 1, "name": "cat"}])
    with pytest.raises(ValueError, match="differ in 3 categories"):
        tool.feed(make_evaluator(tool, coco_root), other, "", batch_size=1)


@pytest.mark.parametrize("content", ["{", '{"images": [], "categories": []}'])
def test_annotations_that_cannot_be_scored_are_refused(
    tool, tmp_path, stand_in, monkeypatch, content
):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(content)
    with pytest.raises(errors.UserError, match=r"val2017\.json"):
        make_evaluator(tool, str(tmp_path))
    monkeypatch.setattr(Evaluator, "__init__", lambda self, root, **_: None)
    monkeypatch.setattr(Evaluator, "root", str(tmp_path), raising=False)
    with pytest.raises(errors.UserError, match=r"val2017\.json"):
        make_evaluator(tool, str(tmp_path))


def test_missing_annotations_and_missing_package_are_named(
    tool, tmp_path, stand_in, monkeypatch
):
    with pytest.raises(ValueError, match=r"no annotations/instances_val2017\.json"):
        make_evaluator(tool, str(tmp_path))
    monkeypatch.setitem(sys.modules, "sotabencheval", None)
    with pytest.raises(ValueError, match=r"pip install --no-deps sotabencheval==0"):
        make_evaluator(tool, str(tmp_path))
