"""The metrics of an export are tested in test_end_to_end.py."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import tool_processes
import toy_data
import view_values
from retinanet_tpu import detector, errors, evaluate_export, structures
from retinanet_tpu.data import category_map
from retinanet_tpu.serving import artifacts

pytestmark = pytest.mark.long

COMMAND = ("-m", "retinanet_tpu.evaluate_export")
CATEGORIES = category_map.from_coco(toy_data.CATEGORIES)


@pytest.fixture
def data_dir(tmp_path):
    return pathlib.Path(toy_data.write(tmp_path))


def detect_nothing(images):
    shapes = ([1, 4], [1], [1], [])
    return structures.Detections(
        *(np.zeros([len(images), *shape], int) for shape in shapes)
    )


def test_invalid_annotations_are_an_error_in_one_sentence(tmp_path):
    path = tmp_path / "truth.json"
    path.write_bytes(b"[" * 9999)
    options = ("--model=absent", "--images=absent", f"--annotations={path}")
    done = tool_processes.run_python(*COMMAND, *options)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (last,) = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert "truth.json" in last


def test_missing_annotation_file_is_an_error_with_its_path(tmp_path, monkeypatch):
    flags = {"annotations": f"{tmp_path}/absent.json", "images": "", "model": ""}
    monkeypatch.setattr(evaluate_export, "FLAGS", type("Flags", (), flags))
    with pytest.raises(tf.errors.NotFoundError, match=r"absent\.json"):
        evaluate_export.main()


def with_flags(data_dir, monkeypatch, **values):
    """Makes the command evaluate a model that detects nothing."""
    flags = {
        "annotations": f"{data_dir}/val.json",
        "images": f"{data_dir}/pictures",
        "model": "model.onnx",
        "output": None,
        "batch_size": 4,
        **view_values.NO_VIEWS,
    }
    monkeypatch.setattr(evaluate_export, "FLAGS", type("Flags", (), flags | values))
    artifact = artifacts.Artifact("model.onnx", "ONNX", CATEGORIES, detect_nothing)
    monkeypatch.setattr(detector, "load_artifact", lambda *_, **__: artifact)


def test_metric_of_open_images_replaces_that_of_coco(data_dir, monkeypatch, capsys):
    names = [{"LabelName": category["name"]} for category in toy_data.CATEGORIES]
    hierarchy = names[0] | {"Subcategory": names[1:]}
    path = data_dir / "hierarchy.json"
    path.write_text(json.dumps(hierarchy))
    options = {"metric": "open_images", "hierarchy": str(path)}
    with_flags(data_dir, monkeypatch, **options)
    evaluate_export.main()
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "Open Images AP50 0.000, mean over 2 classes"
    assert len(others) == 2


def test_the_flags_of_views_reach_the_model(data_dir, monkeypatch):
    images = []
    options = {"metric": "coco", "hierarchy": None}
    for flip in (False, True):
        with_flags(data_dir, monkeypatch, **options, flip=flip)
        artifact = detector.load_artifact("model.onnx")

        def detect(batch):
            images.extend(batch)
            return detect_nothing(batch)

        counted = dataclasses.replace(artifact, detect_fn=detect)
        monkeypatch.setattr(
            detector, "load_artifact", lambda *_, artifact=counted, **__: artifact
        )
        evaluate_export.main()
        assert len(images) == toy_data.NUM_VAL * (1 + flip)
        images.clear()


def test_hierarchy_without_the_metric_of_open_images_is_an_error(data_dir, monkeypatch):
    options = {"metric": "coco", "hierarchy": "hierarchy.json"}
    with_flags(data_dir, monkeypatch, **options)
    with pytest.raises(errors.UserError, match="--hierarchy is for --metric=open_im"):
        evaluate_export.main()
