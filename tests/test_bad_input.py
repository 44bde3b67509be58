"""What a user can get wrong in files and folders: an error that names the thing.

Settings that do not fit each other are in test_gin_configs.py.
"""

import json
import pathlib
import re
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import commands
import repository
import tool_processes
import toy_data
from retinanet_tpu import evaluate, train
from retinanet_tpu.conversion import converter
from retinanet_tpu.data import annotations, category_map, pipeline, record_files
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.task import cli, data_checks

BROKEN = b"\xff\xd8\xff\xe0 no more of it"


@pytest.fixture(scope="module")
def valid_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def data_dir(valid_dir, tmp_path):
    """A copy of the data directory, to damage."""
    return pathlib.Path(shutil.copytree(valid_dir, tmp_path / "data"))


@pytest.fixture
def model_dir(tmp_path):
    return tmp_path / "run"


def make_run(model_dir, data_dir, *bindings, **more):
    return toy_data.make_run(
        model_dir, data_dir, *toy_data.TWO_LEVELS, *bindings, **more
    )


def change_record(data_dir, change_fn, *, split="train", number=3):
    """Changes a record of the first file of a split; returns the file's path."""
    path = record_files.find(str(data_dir), split)[0]
    records = [
        tf.train.Example.FromString(r.numpy()) for r in tf.data.TFRecordDataset(path)
    ]
    change_fn(records[number].features.feature)
    with tf.io.TFRecordWriter(path) as writer:
        for record in records:
            writer.write(record.SerializeToString())
    return path


def read_all(run):
    """Reads what training reads until every record was seen."""
    with cli.explain_data_errors(run):
        for _ in toy_data.train_dataset(run).take(4):
            pass


def test_a_split_without_files_is_an_error_with_the_setting(valid_dir, model_dir):
    run = make_run(model_dir, valid_dir, "Data.train_split = 'trian'")
    with pytest.raises(FileNotFoundError, match=r"No file matches .*/trian-.*DATA_DIR"):
        toy_data.train_dataset(run)


def test_a_missing_evaluation_split_is_an_error_before_training(valid_dir, model_dir):
    with pytest.raises(FileNotFoundError, match=r"No file matches .*/test-"):
        commands.run(train.main, model_dir, valid_dir, "Data.eval_split = 'test'")
    assert not model_dir.exists()


def test_a_folder_without_data_is_an_error_with_the_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"categories\.json.*convert"):
        make_run(tmp_path / "run", tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    "key", ["image/encoded", "image/source_id", "image/object/bbox/xmax"]
)
def test_a_record_without_a_key_is_an_error_with_its_number(data_dir, model_dir, key):
    path = change_record(data_dir, lambda features: features.pop(key))
    message = f"(?s)Record 3 of {re.escape(path)}.*{key}.*retinanet-tpu convert"
    with pytest.raises(ValueError, match=message):
        read_all(make_run(model_dir, data_dir))


def test_a_truncated_file_is_an_error_in_training(data_dir, model_dir):
    path = pathlib.Path(record_files.find(str(data_dir), "train")[0])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=rf"{path} is truncated.*within record 5"):
        read_all(make_run(model_dir, data_dir))


def test_a_truncated_file_is_an_error_in_evaluation(data_dir, model_dir):
    path = pathlib.Path(record_files.find(str(data_dir), "val")[1])
    path.write_bytes(path.read_bytes()[:-50])
    run = make_run(model_dir, data_dir)
    with pytest.raises(ValueError, match=rf"{path} is truncated.*within record 2"):
        run.params["metric_fn"]([])


def test_a_flipped_bit_is_detected_by_the_checksum(data_dir, model_dir):
    path = pathlib.Path(record_files.find(str(data_dir), "train")[0])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{path} is corrupt at record [23]"):
        read_all(make_run(model_dir, data_dir))


def break_image(features):
    features["image/encoded"].bytes_list.value[0] = BROKEN


def test_a_broken_image_is_an_error_with_file_record_and_image(data_dir, model_dir):
    path = change_record(data_dir, break_image)
    message = rf"Record 3 of {re.escape(path)} \(image 105\) cannot be used.*Correct"
    with pytest.raises(ValueError, match=message):
        commands.run(train.main, model_dir, data_dir)


@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "color", "name"),
    [
        ("L", 200, "gray.jpg"),
        ("CMYK", (55, 55, 55, 0), "cmyk.jpg"),
        ("RGB", (200, 200, 200), "rgb.png"),
        ("RGBA", (200, 200, 200, 255), "rgba.png"),
        ("L", 200, "gray.png"),
        ("P", 0, "palette.png"),
    ],
)
def test_an_image_of_another_mode_is_read_as_rgb(tmp_path, mode, color, name):
    image = PIL.Image.new(mode, (40, 30), color)
    if mode == "P":
        image.putpalette([200, 200, 200] * 256)
    image.save(tmp_path / name)
    annotated = annotations.AnnotatedImage(1, name, 30, 40, ())
    _, serialized = converter.convert_image(annotated, str(tmp_path), {})
    with tf.io.TFRecordWriter(str(tmp_path / record_files.file_name("a", 0, 1))) as out:
        out.write(serialized)
    spec = pipeline.DatasetSpec(
        str(tmp_path),
        "a",
        categories=category_map.from_coco(toy_data.CATEGORIES),
        image_size=(32, 64),
    )
    dataset = pipeline.make_eval_dataset(spec, batch_size=1)
    features, _ = next(iter(dataset))
    pixels = features.images[0, 2:28, 2:36].numpy().astype(int)
    np.testing.assert_allclose(pixels, 200, atol=3)


@pytest.mark.long
def test_a_class_missing_in_categories_json_is_an_error_with_its_id(
    data_dir, model_dir
):
    def change(features):
        labels = features["image/object/class/label"].int64_list.value
        labels[0] = 99

    path = change_record(data_dir, change)
    message = rf"(?s){re.escape(path)} .image 105.*not in categories.json.*99"
    with pytest.raises(ValueError, match=message):
        read_all(make_run(model_dir, data_dir))


def test_annotations_of_other_classes_are_an_error_before_training(data_dir, model_dir):
    path = data_dir / "val.json"
    path.write_text(re.sub(r'("(category_)?id": )7\b', r"\g<1>8", path.read_text()))
    with pytest.raises(ValueError, match=r"val\.json has category ids \[8\]"):
        commands.run(train.main, model_dir, data_dir)


def test_a_wrong_number_of_classes_is_an_error_with_the_right_one(valid_dir, model_dir):
    with pytest.raises(ValueError, match=r"3 classes.*has 2; set NUM_CLASSES = 2"):
        make_run(model_dir, valid_dir, "NUM_CLASSES = 3")


def test_a_corrected_setting_can_use_the_same_model_dir(valid_dir, model_dir):
    with pytest.raises(ValueError, match="set NUM_CLASSES = 2"):
        commands.run(train.main, model_dir, valid_dir, "NUM_CLASSES = 3")
    with pytest.raises(ValueError, match="never fires"):
        commands.run(train.main, model_dir, valid_dir, "MAX_STEPS = 1")
    assert not model_dir.exists()


def test_a_batch_that_replicas_cannot_divide_is_an_error(valid_dir, model_dir):
    with pytest.raises(ValueError, match="batch of 8 does not divide by 3 replicas"):
        make_run(model_dir, valid_dir, num_replicas=3)


@pytest.mark.parametrize("key", ["images", "categories"])
def test_an_annotation_file_with_an_empty_list_is_an_error(data_dir, model_dir, key):
    path = data_dir / "val.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: []}))
    run = make_run(model_dir, data_dir)
    with pytest.raises(ValueError, match=rf"val\.json lists no {key}"):
        data_checks.check(run)


def test_a_split_without_annotations_is_an_error(data_dir, model_dir):
    path = data_dir / "val.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    with pytest.raises(ValueError, match="no annotation that a detection can match"):
        commands.run(train.main, model_dir, data_dir)
    run = make_run(model_dir, data_dir)
    with pytest.raises(ValueError, match="no annotation that a detection can match"):
        run.params["metric_fn"]([])


@pytest.fixture
def started_dir(valid_dir, model_dir):
    """A model_dir with the configuration of a run and a checkpoint."""
    model_dir.mkdir()
    text = toy_data.parse(valid_dir, *toy_data.TWO_LEVELS)
    (model_dir / cli.CONFIG_FILE).write_text(text)
    checkpoints.save(str(model_dir), 1, {"global_step": np.int64(1)})
    return model_dir


def test_a_model_dir_of_another_configuration_is_an_error(valid_dir, started_dir):
    changed = r"- BATCH_SIZE = 8\n.*\+ BATCH_SIZE = 4\n.*--accept_changes"
    with pytest.raises(ValueError, match=rf"(?s)another configuration.*{changed}"):
        commands.run(train.main, started_dir, valid_dir, "BATCH_SIZE = 4")
    assert "BATCH_SIZE = 8" in (started_dir / cli.CONFIG_FILE).read_text()


def test_a_checkpoint_of_another_network_is_an_error(valid_dir, started_dir):
    more = {"accept_changes": True}
    with pytest.raises(ValueError, match=r"model\.ckpt-1 .* variables differ, first: "):
        commands.run(train.main, started_dir, valid_dir, "BATCH_SIZE = 4", **more)
    assert "BATCH_SIZE = 4" in (started_dir / cli.CONFIG_FILE).read_text()


def test_evaluating_an_untrained_model_dir_is_an_error(tmp_path, valid_dir):
    with pytest.raises(FileNotFoundError, match=r"No .*config\.gin.*--model_dir"):
        commands.run(evaluate.main, tmp_path, valid_dir, once=True)
    text = toy_data.parse(valid_dir, *toy_data.TWO_LEVELS)
    (tmp_path / cli.CONFIG_FILE).write_text(text)
    with pytest.raises(FileNotFoundError, match=r"No checkpoint in .*train first"):
        commands.run(evaluate.main, tmp_path, valid_dir, once=True)


@pytest.mark.long
def test_a_user_error_is_one_sentence_without_a_traceback():
    command = ("-m", "retinanet_tpu.train", "--dry_run")
    settings = ("--gin_file=gin_configs/quickstart.gin", "--gin_param=NUM_CLASES = 3")
    done = tool_processes.run_python(*command, *settings, cwd=repository.ROOT)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Did you mean NUM_CLASSES?" in last
    assert "Traceback" not in done.stderr
