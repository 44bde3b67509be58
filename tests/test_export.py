import importlib.util
import json
import pathlib
import re

import gin
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import commands
import repository
import retinanet_tpu
import tool_processes
import toy_data
from retinanet_tpu import analyze, errors, export, optional_packages, train
from retinanet_tpu.estimator import summaries
from retinanet_tpu.evaluation import coco_metric
from retinanet_tpu.serving import artifacts, formats, parity, warm_up

pytestmark = pytest.mark.long

# With these settings a network has detections after twelve steps, and their scores
# differ enough.
DETECTS = (
    "Heads.prior = 0.3",
    "MAX_STEPS = 12",
    "SEED = 2",
    "cosine.base = 0.02",
    "RunConfig.save_checkpoints_steps = 12",
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model_dir(data_dir, tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("runs") / "run"
    commands.run(train.main, model_dir, data_dir, *DETECTS)
    return model_dir


def run_export(model_dir, **more):
    """Exports; returns the directory of the newest export."""
    commands.run(export.main, model_dir, None, **more)
    return max((model_dir / "export" / "latest").glob("[0-9]*"))


def test_server_survives_hostile_requests_with_little_memory(exported):
    client = pathlib.Path(__file__).parent / "helpers" / "hostile_client.py"
    done = tool_processes.run_python(client, exported)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == 9 and not results.pop("good")[2]
    for name, (secs, growth_mb, error) in results.items():
        limit = {"many": "max_request_images = 64", "GIF": "send JPEG, PNG or BMP"}
        expected = limit.get(name.split()[0], "max_image_pixels = 50000000")
        assert error.startswith("InvalidArgumentError") and expected in error, name
        assert growth_mb < 100, name  # The decoded pixels take gigabytes.
        assert secs < 5, name  # Without a limit it takes minutes.


HAS_OPENVINO = importlib.util.find_spec("openvino") is not None
INSTALLED_FORMATS = [x for x in formats.FORMATS if x != "openvino" or HAS_OPENVINO]


def exports(model_dir):
    return set((model_dir / "export" / "latest").glob("*"))


@pytest.fixture(scope="module")
def exported(model_dir):
    return run_export(model_dir, format=INSTALLED_FORMATS)


@pytest.mark.parametrize("name", INSTALLED_FORMATS)
def test_every_format_returns_the_detections_of_the_saved_model(
    exported, data_dir, name
):
    file = exported / formats.FORMATS[name].file
    if name == "tensorrt":
        with pytest.raises(ValueError, match="build_engine"):
            artifacts.load(str(file))
        return
    paths = sorted(pathlib.Path(data_dir, "pictures").glob("50*.jpg"))[:2]
    batches = [np.array(Image.open(path))[None] for path in paths]
    expected = artifacts.load(str(exported))
    artifact = artifacts.load(str(file))
    result = parity.compare(
        [artifact.detect(batch) for batch in batches],
        [expected.detect(batch) for batch in batches],
        formats.FORMATS[name].tolerance,
    )
    assert result.num_compared > 4
    assert result.is_within(formats.FORMATS[name].tolerance)
    assert artifact.names == {3: "red", 7: "blue"}


def test_a_checkpoint_in_python_has_the_detections_of_its_saved_model(
    exported, model_dir, data_dir
):
    paths = sorted(pathlib.Path(data_dir, "pictures").glob("50*.jpg"))[:3]
    expected = retinanet_tpu.load(exported)(paths)
    files = {path: path.stat().st_mtime_ns for path in model_dir.rglob("*")}
    gin.clear_config()
    gin.parse_config("NMS.max_detections = 1")
    gin.finalize()
    model = retinanet_tpu.load(model_dir)
    assert gin.query_parameter("NMS.max_detections") == 1 and gin.config_is_locked()
    gin.clear_config()
    assert (model.kind, model.path) == ("checkpoint", f"{model_dir}/model.ckpt-12")
    assert model.names == {3: "red", 7: "blue"}
    for actual, wanted in zip(model(paths), expected, strict=True):
        assert len(actual.scores) > 4 and actual.names == wanted.names
        for array, wanted_array in zip(actual[:3], wanted[:3], strict=True):
            assert array.dtype == wanted_array.dtype
            np.testing.assert_array_equal(array, wanted_array)
    assert files == {path: path.stat().st_mtime_ns for path in model_dir.rglob("*")}


def test_export_contains_all_files_for_a_server(exported):
    signatures = tf.saved_model.load(str(exported)).signatures
    assert set(signatures) == {"serving_default", "images", "image_bytes", "tf_example"}
    extra = exported / "assets.extra"
    assert json.loads((extra / "label_map.json").read_text()) == {
        "3": "red",
        "7": "blue",
    }
    warm_up = tf.data.TFRecordDataset(str(extra / "tf_serving_warmup_requests"))
    assert len(list(warm_up)) == 3
    card = (exported / "model_card.md").read_text()
    for expected in ("model.ckpt-12", "red, blue", "| AP | ", "MAX_STEPS = 12"):
        assert expected in card
    check_results = re.findall(r"(\d+) of (\d+) detections agree", card)
    assert len(check_results) == len(INSTALLED_FORMATS)
    assert all(int(compared) > 0 for _, compared in check_results)


def test_snippet_of_the_guide_runs(exported, data_dir):
    guide = (repository.ROOT / "docs/guides/export.md").read_text()
    (snippet,) = re.findall(r"```python\n(import json\n.*?)```", guide, re.DOTALL)
    image_file = next(pathlib.Path(data_dir, "pictures").glob("*.jpg"))
    for quoted, actual in (
        ("run1/export/latest/1795000000", exported),
        ("photo.jpg", image_file),
    ):
        assert snippet.count(quoted) == 1
        snippet = snippet.replace(quoted, str(actual))
    names = {}
    exec(snippet, names)
    count = names["valid_detections"]
    assert 0 < count == len(names["boxes"]) == len(names["scores"])
    assert len(names["classes"]) == count and set(names["classes"]) <= {"red", "blue"}


def test_the_page_of_a_run_has_the_metrics_of_its_evaluation(
    model_dir, data_dir, tmp_path
):
    lines = {}

    def analyze_run():
        source = analyze.evaluation_of_run()
        lines["run"] = analyze.write_page(source)
        lines["num"] = sum(len(image.scores) for image in source.detections)
        assert source.output == f"{model_dir}/eval/analysis-12.html"
        results = [
            record
            for image in source.detections
            for record in coco_metric.detection_records(
                image.boxes_yxyx, image.scores, image.category_ids, image.image_id
            )
        ]
        (tmp_path / "results.json").write_text(json.dumps(results))

    commands.run(analyze_run, model_dir, None)
    (record,) = summaries.read_evaluations(f"{model_dir}/eval")
    assert lines["num"] == record["num_detections"] > 0
    assert f"AP {record['AP']:.3f} | " in lines["run"]
    page = (model_dir / "eval" / "analysis-12.html").read_text()
    assert "Analysis of run, step 12" in page and "data:image/jpeg" in page

    source = analyze.evaluation_of_file(
        str(tmp_path / "results.json"),
        f"{data_dir}/val.json",
        f"{data_dir}/pictures",
        str(tmp_path / "page.html"),
    )
    assert analyze.write_page(source) == lines["run"]
    assert "data:image/jpeg" in (tmp_path / "page.html").read_text()
    with pytest.raises(errors.UserError, match="requires --annotations and --output"):
        analyze.evaluation_of_file("results.json", None, None, None)
    with pytest.raises(errors.UserError, match="is a directory; give an HTML file"):
        analyze.evaluation_of_file("results.json", "val.json", None, str(tmp_path))


@pytest.fixture(scope="module")
def small_export(model_dir):
    limits = ("max_request_images = 1", "max_image_pixels = 20_000")
    settings = [f"Recipe.{limit}" for limit in limits]
    return run_export(model_dir, nms="global_hard", gin_param=settings)


def test_nms_and_limits_can_be_set_for_an_export(small_export):
    card = (small_export / "model_card.md").read_text()
    assert "global_hard (hard)" in card
    assert "1 images (`Recipe.max_request_images`) of 20,000 pixels" in card
    artifact = artifacts.load(str(small_export))
    assert len(artifact.detect(np.zeros([3, 100, 200, 3], np.uint8)).scores) == 3
    with pytest.raises(errors.UserError, match="max_image_pixels = 20000"):
        artifact.detect(np.zeros([1, 100, 201, 3], np.uint8))


def test_warm_up_requests_are_within_the_limits(small_export):
    model = tf.saved_model.load(str(small_export))
    path = small_export / "assets.extra" / warm_up.FILE_NAME
    for serialized in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        request = warm_up._log_class().FromString(serialized).predict_log.request
        inputs = {x.key: tf.constant(tf.make_ndarray(x.value)) for x in request.inputs}
        assert model.signatures[request.model_spec.signature_name](**inputs)


def test_a_checkpoint_that_is_missing_is_an_error(model_dir):
    with pytest.raises(FileNotFoundError, match=r"model\.ckpt-7"):
        run_export(model_dir, checkpoint=f"{model_dir}/model.ckpt-7")


def test_export_of_a_given_checkpoint_without_the_format_saved_model(model_dir):
    path = run_export(
        model_dir, format=["tflite"], checkpoint=f"{model_dir}/model.ckpt-12"
    )
    assert "model.ckpt-12" in (path / "model_card.md").read_text()
    assert not tf.saved_model.contains_saved_model(str(path))
    assert (path / "model.tflite").exists()
    assert artifacts.load(artifacts.find(str(path))).names == {3: "red", 7: "blue"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"format": ["onxx"]}, r"--format is 'onxx'; choose from saved_model, onnx"),
        ({"format": []}, r"--format is ''; choose from saved_model"),
        ({"nms": "gentle"}, r"NMS\.variant is 'gentle'; choose one of combined"),
        ({"format": ["tensorrt"], "nms": "global_soft"}, r"--nms=per_class_hard"),
        (
            {"format": ["tensorrt"], "gin_param": ["NMS.score_threshold = 0.001"]},
            r"under 0\.007 TensorRT",
        ),
        ({"check_images": "/nowhere"}, r"/nowhere matches no image"),
        (
            {"gin_param": ["ResNet.width = 16"]},
            r"belongs to another configuration; .* is \(3, 3, 8, 8\), not",
        ),
    ],
)
def test_export_that_fails_is_an_error_and_leaves_nothing(model_dir, flags, message):
    before = exports(model_dir)
    with pytest.raises(ValueError, match=message):
        run_export(model_dir, **flags)
    assert exports(model_dir) == before


def test_error_for_a_missing_package_contains_its_extra(model_dir, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(optional_packages.importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[onnx\]'"):
        run_export(model_dir, format=["onnx"])


def test_error_without_a_checkpoint_contains_the_remedy(model_dir, tmp_path):
    (tmp_path / "config.gin").write_text((model_dir / "config.gin").read_text())
    with pytest.raises(FileNotFoundError, match=r"No checkpoint in .*train"):
        run_export(tmp_path)


def test_export_with_other_detections_is_rejected(model_dir, monkeypatch):
    before = exports(model_dir)
    monkeypatch.setitem(
        formats.FORMATS,
        "tflite",
        formats.FORMATS["tflite"]._replace(
            tolerance=parity.Tolerance(iou=2.0, score=-1.0)
        ),
    )
    with pytest.raises(ValueError, match="tflite export differs from the checkpoint"):
        run_export(model_dir, format=["tflite"])
    assert exports(model_dir) == before
