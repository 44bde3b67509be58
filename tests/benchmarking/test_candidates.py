"""Tests which models of an export are measured."""

import json

import pytest

from retinanet_tpu import errors
from retinanet_tpu.benchmarking import candidates

FILES = {
    "model_int8.tflite": 1,
    "model.onnx": 5,
    "model_tensorrt.onnx": 6,
    "model_openvino.xml": 7,
    "model_openvino.bin": 80,
    "model.tflite": 4,
    "model_float16.tflite": 2,
    "saved_model.pb": 3,
    "variables/variables.index": 10,
    "model_card.md": 1000,
}


def write(directory, files):
    for name, size in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return directory


def write_categories(directory, *names):
    rows = [{"index": i, "id": i, "name": name} for i, name in enumerate(names)]
    content = {"num_classes": len(rows), "categories": rows}
    (directory / "categories.json").write_text(json.dumps(content))


def write_run(directory):
    return write(
        directory,
        {
            "config.gin": 1,
            "model.ckpt-3.index": 1,
            "model.ckpt-3.data-00000-of-00001": 1,
            "model.ckpt-20.index": 1,
            "model.ckpt-20.data-00000-of-00001": 1,
        },
    )


def test_all_formats_of_the_newest_export_are_listed_with_their_sizes(tmp_path):
    write(tmp_path / "1700000001", {"saved_model.pb": 1})
    write(tmp_path / "1700000002", FILES)
    found = candidates.find([f"{tmp_path}/"])
    assert [(x.name, x.num_bytes, x.is_runnable) for x in found] == [
        ("SavedModel", 13, True),
        ("ONNX", 5, True),
        ("OpenVINO", 87, True),
        ("ONNX for TensorRT", 6, False),
        ("TFLite float32", 4, True),
        ("TFLite float16", 2, True),
        ("TFLite int8", 1, True),
    ]
    assert {x.directory for x in found} == {str(tmp_path / "1700000002")}
    assert [x.is_saved_model for x in found] == [True] + [False] * 6


def test_names_contain_the_export_if_there_are_several(tmp_path):
    first = write(tmp_path / "v1.5", {"saved_model.pb": 1, "model.onnx": 1})
    second = write(tmp_path / "other", {"my.tflite": 1})
    paths = [str(first), str(first / "model.onnx"), str(second)]
    assert [x.name for x in candidates.find(paths)] == [
        f"{first}: SavedModel",
        f"{first}: ONNX",
        f"{second}: my.tflite",
    ]
    assert [x.name for x in candidates.find(paths[:2])] == ["SavedModel", "ONNX"]


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({}, "absent", "absent does not exist; give an export"),
        ({"a.txt": 1}, "", r"contains no saved_model.pb, \.onnx, \.tflite or \.xml"),
        ({"a.txt": 1}, "a.txt", r"is a file, but no \.onnx, \.tflite or \.xml"),
        ({"model_tensorrt.onnx": 1}, "", "has only model_tensorrt.onnx, which needs"),
    ],
)
def test_a_path_without_a_model_is_an_error(tmp_path, files, name, message):
    write(tmp_path, files)
    with pytest.raises(errors.UserError, match=message):
        candidates.find([f"{tmp_path}/{name}"])


def test_a_checkpoint_is_that_of_the_path_or_the_newest_one(tmp_path):
    run = write_run(tmp_path / "run")
    assert candidates.checkpoint(f"{run}/").path == f"{run}/model.ckpt-20"
    for name in ("model.ckpt-3", "model.ckpt-3.index"):
        found = candidates.checkpoint(f"{run}/{name}")
        assert found.path == f"{run}/model.ckpt-3"
        assert found.is_checkpoint and not found.is_saved_model


def test_a_missing_checkpoint_or_config_is_an_error(tmp_path):
    run = write_run(tmp_path / "run")
    config = run / "config.gin"
    for path in (tmp_path, run / "model.ckpt-4", tmp_path / "absent", config):
        with pytest.raises(errors.MissingFileError, match="no complete checkpoint"):
            candidates.checkpoint(str(path))
    config.unlink()
    with pytest.raises(errors.MissingFileError, match=r"has no config\.gin, which"):
        candidates.checkpoint(str(run))


def test_models_with_other_categories_are_an_error(tmp_path):
    first = write(tmp_path / "a", {"model.onnx": 1})
    second = write(tmp_path / "b", {"model.onnx": 1})
    models = candidates.find([str(first), str(second)])
    candidates.check_categories(models, None)
    write_categories(first, "cat", "dog")
    candidates.check_categories(models, None)
    write_categories(second, "cat", "dog")
    candidates.check_categories(models, None)
    write_categories(second, "cat", "emu")
    with pytest.raises(errors.UserError, match=r"b/model.onnx has other categories"):
        candidates.check_categories(models, None)
