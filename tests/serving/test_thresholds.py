import json

import pytest

from retinanet_tpu import errors
from retinanet_tpu.serving import thresholds

SCORES = {"AP": 0.5, "best_threshold": 0.47, "best_f1": 0.6}
SCORES["per_class_threshold"] = {"Käfer": 0.4}


@pytest.mark.parametrize("folder", ["assets.extra", ""])
def test_the_threshold_of_an_evaluation_is_read_again(tmp_path, folder):
    thresholds.write(str(tmp_path / folder), SCORES)
    assert thresholds.read(str(tmp_path)) == 0.47
    assert thresholds.read(str(tmp_path / "model.onnx")) == 0.47
    content = json.loads((tmp_path / folder / thresholds.FILE_NAME).read_text())
    assert content == {key: SCORES[key] for key in SCORES if key != "AP"}


@pytest.mark.parametrize("scores", [None, {}, {"AP": 0.5}])
def test_without_an_evaluation_there_is_no_file(tmp_path, scores):
    thresholds.write(str(tmp_path), scores)
    assert not list(tmp_path.iterdir())
    assert thresholds.read(str(tmp_path)) is None


def test_a_whole_number_is_a_threshold(tmp_path):
    (tmp_path / thresholds.FILE_NAME).write_text('{"best_threshold": 1}')
    assert thresholds.read(str(tmp_path)) == 1.0


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"best_threshold": 2.0}', '{"best_threshold": true}']
)
def test_a_corrupt_file_is_an_error(tmp_path, content):
    (tmp_path / thresholds.FILE_NAME).write_text(content)
    with pytest.raises(errors.UserError, match="expected a number from 0 to 1"):
        thresholds.read(str(tmp_path))
