import logging
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

import headless_browser
import servers
from retinanet_tpu import browser_page, errors
from retinanet_tpu.data import category_map
from retinanet_tpu.serving import artifacts, onnx_format
from retinanet_tpu.serving.browser import onnxruntime_web


def touch(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def package(tmp_path):
    """A folder with the files of onnxruntime-web, of another version."""
    for name in ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs"):
        touch(tmp_path / "web" / name, b"// ONNX Runtime Web v0.1.0")
    touch(tmp_path / "web" / "ort-wasm-simd-threaded.wasm")
    return str(tmp_path / "web")


def test_the_newest_export_with_an_onnx_file_is_used(tmp_path):
    run = tmp_path / "run"
    exports = run / "export" / "latest"
    model = touch(exports / "1700000001" / "model.onnx")
    touch(exports / "1700000000" / "model.onnx")
    touch(exports / "1700000002" / "saved_model.pb")
    touch(exports / "temp-1700000003" / "model.onnx")
    for path in (run, exports, model.parent, model):
        assert browser_page.find_onnx(str(path)) == str(model)


def test_a_model_without_onnx_is_refused_with_the_remedy(tmp_path):
    tflite = touch(tmp_path / "model.tflite")
    touch(tmp_path / "model_tensorrt.onnx")
    touch(tmp_path / "saved_model.pb")
    for path in (tflite, tmp_path):
        with pytest.raises(errors.UserError, match="--format=onnx"):
            browser_page.find_onnx(str(path))
    with pytest.raises(errors.MissingFileError, match="does not exist"):
        browser_page.find_onnx(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"EfficientNMS_TRT", "only TensorRT has"), (b"text", "cannot be loaded")],
)
def test_an_onnx_file_that_is_no_detector_is_refused(
    tmp_path, package, content, message
):
    pytest.importorskip("onnxruntime")
    model = touch(tmp_path / "model.onnx", content)
    with pytest.raises(errors.UserError, match=message):
        browser_page.write(str(model), output=None, package=package)
    assert not (tmp_path / "browser.html").exists()


def test_without_onnxruntime_web_nothing_is_loaded(tmp_path):
    model = touch(tmp_path / "model.onnx", b"text")
    with pytest.raises(errors.MissingFileError, match="npm pack onnxruntime-web@"):
        browser_page.write(str(model), output=None, package=str(tmp_path / "no.tgz"))


def test_an_output_that_cannot_be_written_is_an_error_before_the_work(tmp_path):
    model = touch(tmp_path / "model.onnx", b"text")
    for output in (tmp_path, model / "page.html"):
        with pytest.raises(errors.UserError, match=f"--output={output}"):
            # The missing runtime would be the next error.
            browser_page.write(str(model), output=str(output), package="absent")


def test_the_page_is_beside_the_model_with_its_threshold(
    tmp_path, package, monkeypatch, caplog
):
    model = touch(tmp_path / "model.onnx")
    for threshold, shown in ((None, 0.3), (0.0, 0.0), (0.25, 0.25)):
        artifact = artifacts.Artifact(str(model), "ONNX", None, None, threshold)
        monkeypatch.setattr(artifacts, "load", lambda _, a=artifact: a)
        with caplog.at_level(logging.WARNING, "absl"):
            path = browser_page.write(str(model), output=None, package=package)
        assert path == str(tmp_path / "browser.html")
        other = str(tmp_path / "new" / f"{shown}.html")
        assert browser_page.write(str(model), output=other, package=package) == other
        text = (tmp_path / "browser.html").read_text("utf-8")
        assert f'"threshold":{shown}}}' in text
    assert "is version 0.1.0; tested with" in caplog.text


@pytest.fixture
def archive(tmp_path):
    """The path of the archive of onnxruntime-web."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed.")
    name = f"onnxruntime-web@{onnxruntime_web.TESTED_VERSION}"
    done = subprocess.run(["npm", "pack", "--silent", name], cwd=tmp_path, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot download {name}.")
    return str(tmp_path / onnxruntime_web.ARCHIVE)


READY = "!document.getElementById('status').textContent.startsWith('Loading')"
DONE = "!document.getElementById('shots').textContent.includes(' waiting')"
BOXES = """[...document.querySelectorAll("figure")].map((shot) =>
  [...shot.querySelectorAll(".box")].map((box) => [
    ...["left", "top", "width", "height"].map((side) => parseFloat(box.style[side])),
    +box.dataset.score, +box.dataset.id]))"""
CAPTIONS = "[...document.querySelectorAll('figcaption')].map((x) => x.textContent)"
COUNT_SHOWN = "document.querySelectorAll('.box:not(.hidden)').length"
MOVE_SLIDER = """(() => { const slider = document.getElementById("score");
  slider.value = "%s"; slider.dispatchEvent(new Event("input")); })()"""
# Files that are dropped on the page, without a mouse.
DROP = """(() => { const data = new DataTransfer();
  for (const name of %s) data.items.add(new File(["no image"], name));
  dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
  const status = document.getElementById("status");
  return [status.textContent, status.classList.contains("bad")]; })()"""


@pytest.mark.slow
def test_a_browser_has_the_detections_of_onnxruntime(tmp_path, archive):
    for name in ("tf2onnx", "onnxruntime"):
        pytest.importorskip(name)
    module = servers.make()
    signature = module.detect_images.input_signature
    model = onnx_format.convert(module.detect_images, signature)
    path = touch(tmp_path / "model.onnx", model.SerializeToString())
    names = category_map.to_json(servers.CATEGORIES)
    (tmp_path / category_map.FILE_NAME).write_text(names)
    sizes = [(60, 90), (200, 110)]
    images = [servers.images(1, size, seed)[0] for seed, size in enumerate(sizes)]
    # Lossless, as decoders of JPEG differ by some values.
    files = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file)
    files.append(touch(tmp_path / "text.png", b"no image"))
    output = browser_page.write(str(path), output=None, package=archive)
    artifact = artifacts.load(str(path))
    expected = [artifacts.select_image(artifact.detect(x[None]), 0) for x in images]
    all_scores = np.concatenate([each.scores for each in expected])
    middle = round(float(np.median(all_scores)), 2)
    with headless_browser.Page(tmp_path / "profile") as page:
        page.open(f"file://{output}")
        page.wait_for(READY)
        page.choose_files("#files", files)
        without_file = page.evaluate(DROP % "[]")
        with_file = page.evaluate(DROP % "['dropped.png']")
        page.wait_for(DONE)
        found = page.evaluate(BOXES)
        captions = page.evaluate(CAPTIONS)
        page.evaluate(MOVE_SLIDER % middle)
        num_shown = page.evaluate(COUNT_SHOWN)
        assert page.messages() == []
        assert {url.partition(":")[0] for url in page.requests()} == {"file", "blob"}
    assert without_file == ["There was no file. Drop image files.", True]
    assert with_file[0].startswith("The model is ready.") and not with_file[1]
    for (height, width), rows, caption, each in zip(
        sizes, found[:2], captions[:2], expected, strict=True
    ):
        # The page has the best last.
        percent, scores, ids = np.split(np.array(rows[::-1]), [4, 5], axis=1)
        left, top, *size = (percent * [width, height, width, height] / 100).T
        boxes_yxyx = np.stack([top, left, top + size[1], left + size[0]], axis=1)
        np.testing.assert_allclose(scores[:, 0], each.scores, atol=1e-5)
        np.testing.assert_array_equal(ids[:, 0], each.classes)
        np.testing.assert_allclose(boxes_yxyx, each.boxes_yxyx, atol=5e-3)
        assert f"{width} x {height} px" in caption
    assert num_shown == np.sum(all_scores >= middle) > 5
    reason = "this browser cannot decode it as an image."
    assert captions[2:] == [f"text.png {reason}", f"dropped.png {reason}"]
