"""Runs the command on a small SavedModel in this process."""

import json
import pathlib
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retinanet_tpu import benchmark, errors
from retinanet_tpu.benchmarking import candidates, processes, worker
from retinanet_tpu.serving import annotated_images

FLAGS = {
    "images": None,
    "annotations": None,
    "checkpoint": None,
    "batch_sizes": ["2", "1"],
    "rounds": 2,
    "num_threads": None,
    "output": None,
}


class WholeImageDetector(tf.Module):
    """Detects each whole image."""

    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")]
    )
    def serve(self, images):
        batch, height, width = tf.unstack(tf.shape(images)[:3])
        box_xyxy = tf.cast([0, 0, width, height], tf.float32)
        return {
            "boxes_xyxy": tf.tile(box_xyxy[None, None], [batch, 1, 1]),
            "scores": tf.fill([batch, 1], 0.75),
            "class_ids": tf.fill([batch, 1], 3),
            "valid_detections": tf.fill([batch], 1),
        }


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "1700000000"
    module = WholeImageDetector()
    tf.saved_model.save(module, str(directory), {"images": module.serve})
    content = {"num_classes": 1, "categories": [{"index": 0, "id": 3, "name": "cat"}]}
    (directory / "categories.json").write_text(json.dumps(content))
    return directory


@pytest.fixture
def data(tmp_path):
    """Returns a folder with photographs and their annotations."""
    sizes = [(30, 20), (16, 16), (30, 20)]
    truth = {"categories": [{"id": 3, "name": "cat"}], "images": [], "annotations": []}
    for number, (width, height) in enumerate(sizes, start=1):
        name = f"{number}.png"
        Image.new("RGB", (width, height)).save(tmp_path / name)
        size = {"width": width, "height": height}
        truth["images"].append({"id": number, "file_name": name, **size})
        box = {"image_id": number, "category_id": 3, "bbox": [0, 0, width, height]}
        truth["annotations"].append({"id": number, "area": width * height, **box})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return tmp_path


@pytest.fixture
def run(export, monkeypatch):
    """Returns a function that runs the command without processes."""
    monkeypatch.setattr(
        processes, "Process", lambda x, num_threads: worker.Worker(x, None)
    )
    monkeypatch.setattr(benchmark, "_TURN_SECS", 0.0)

    def call(**flag_values):
        values = FLAGS | {"model": [str(export.parent)]} | flag_values
        monkeypatch.setattr(benchmark, "FLAGS", types.SimpleNamespace(**values))
        return benchmark.main()

    return call


def test_the_command_measures_a_saved_model(run, data, tmp_path, capsys):
    output = tmp_path / "new" / "output"
    code = run(images=str(data), annotations=f"{data}/truth.json", output=str(output))
    assert code == 0
    text = (output / "table.md").read_text()
    assert capsys.readouterr().out == text
    assert "rounds: 2, batches of 20 x 30 px, images: 3 of" in text
    assert " 1.0000 | 1.0000 | " in text and " reference | " in text
    content = json.loads((output / "results.json").read_text())
    assert content["description"] == text.splitlines()[0]
    (result,) = content["results"]
    assert result["metrics"]["num_images"] == 3 and result["error"] is None
    for batch_size in ("1", "2"):
        latency = result["latency"][batch_size]
        assert len(latency["round_secs"]) == 2
        assert 0 < latency["min_ms"] <= latency["median_ms"] <= latency["max_ms"]
    assert result["load_secs"] > 0 and result["first_image_secs"] > 0


def test_a_format_that_fails_has_its_error_in_the_table(run, data, export, capsys):
    broken = pathlib.Path(export / "model_int8.tflite")
    broken.write_bytes(b"no model")
    (export / "model_tensorrt.onnx").write_bytes(b"EfficientNMS_TRT")
    try:
        assert run(images=str(data / "*.png"), batch_sizes=["1"]) == 1
    finally:
        broken.unlink()
    lines = capsys.readouterr().out.splitlines()
    assert "images: 3 of" in lines[0] and "without annotations" in lines[0]
    saved_model, tensorrt, int8 = lines[4:]
    assert " reference | " in saved_model
    assert "not run: it needs TensorRT" in tensorrt
    assert f"error: {broken} cannot be loaded" in int8


def test_images_are_synthetic_without_a_folder(run, capsys):
    assert run() == 0
    first_line = capsys.readouterr().out.splitlines()[0]
    assert (
        "480 x 640 px, images: 2 synthetic ones, on which detections mean" in first_line
    )


@pytest.mark.parametrize(
    ("name", "message"), [("file", "is a file; give a folder"), ("file/new", "be made")]
)
def test_an_output_that_cannot_be_written_is_an_error_before_the_work(
    run, tmp_path, name, message
):
    (tmp_path / "file").write_text("")
    # The missing model would be the next error.
    with pytest.raises(
        errors.UserError, match=f"--output={tmp_path}/{name} .*{message}"
    ):
        run(model=["absent"], output=f"{tmp_path}/{name}")


@pytest.mark.long  # A process that imports TensorFlow.
def test_a_model_runs_in_a_process_with_its_own_threads(export):
    candidate = candidates.find([str(export)])[0]
    images = np.zeros([2, 8, 8, 3], np.uint8)
    process = processes.Process(candidate, num_threads=1)
    try:
        assert process.load(images).load_secs > 0
        turn = process.measure(2, 0.0)
        assert len(turn.secs) == 1 and turn.cpu_secs > 0
        assert process.memory_mb() > 0
        with pytest.raises(errors.UserError, match=r"absent\.png"):
            process.detect([annotated_images.ImageFile(1, "absent.png")])
    finally:
        process.close()
    assert process._process.exitcode == 0


@pytest.mark.parametrize(
    ("flag_values", "message"),
    [
        ({"batch_sizes": ["1", "0"]}, r"--batch_sizes=1,0 must be numbers from 1"),
        ({"batch_sizes": ["x"]}, r"--batch_sizes=x must be numbers"),
        ({"batch_sizes": []}, r"--batch_sizes= must be numbers"),
        ({"model": ["absent"]}, r"--model=absent does not exist"),
        ({"checkpoint": "absent"}, r"--checkpoint=absent is no complete checkpoint"),
        ({"images": "absent"}, r"--images=absent matches no image"),
        ({"annotations": "{data}/truth.json"}, r"--annotations needs --images"),
        (
            {"annotations": "{data}/truth.json", "images": "{data}/truth.json"},
            r"lacks 3 of 3 annotated images",
        ),
    ],
)
def test_bad_input_is_an_error_before_a_model_is_loaded(
    run, data, monkeypatch, flag_values, message
):
    monkeypatch.setattr(processes, "Process", None)
    values = {
        key: value.format(data=data) if isinstance(value, str) else value
        for key, value in flag_values.items()
    }
    with pytest.raises(errors.UserError, match=message):
        run(**values)


def test_an_unreadable_image_is_an_error_before_a_model_is_loaded(
    run, data, monkeypatch
):
    monkeypatch.setattr(processes, "Process", None)
    (data / "3.png").write_bytes(b"no image")
    with pytest.raises(errors.UserError, match=r"3\.png cannot be read"):
        run(images=str(data))


def test_other_categories_are_an_error_before_a_model_is_loaded(run, data, monkeypatch):
    monkeypatch.setattr(processes, "Process", None)
    path = data / "truth.json"
    path.write_text(path.read_text().replace("cat", "dog").replace("dogeg", "categ"))
    with pytest.raises(errors.UserError, match=r"differ in 1 categories, such as id 3"):
        run(images=str(data), annotations=str(path))
