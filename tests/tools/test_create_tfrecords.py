import json
import os
import pathlib
import subprocess
import sys

import pycocotools.coco
import pytest
import tensorflow as tf

from retinanet_tpu.data import categories, pipeline, record_files, tf_example

ROOT = pathlib.Path(__file__).parents[2]
BCCD = ROOT.parent / "shared" / "data" / "bccd"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


def run(tool, *options):
    command = [sys.executable, str(ROOT / "tools" / tool), *options]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def convert(output_dir, split, *options):
    return run(
        "create_tfrecords.py",
        f"--output_dir={output_dir}",
        f"--split={split}",
        *options,
    )


def coco_options(folder, split):
    return [
        "--format=coco",
        f"--images={folder / split}",
        f"--annotations={folder / split}.json",
    ]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    numbers = ["--num_train=5", "--num_val=3", "--image_size=96"]
    done = run("create_toy_dataset.py", f"--output_dir={folder}", *numbers)
    assert done.returncode == 0, done.stderr
    return folder


def test_toy_set_becomes_a_data_directory_that_training_reads(toy, tmp_path):
    done = convert(tmp_path, "train", *coco_options(toy, "train"), "--num_shards=2")
    assert done.returncode == 0, done.stderr
    assert "5  images stored" in done.stdout and "NUM_CLASSES = 4" in done.stdout
    assert sorted(os.listdir(tmp_path)) == [
        "categories.json",
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
        "train.json",
    ]
    read = categories.read(str(tmp_path / "categories.json"))
    assert read.names == ["circle", "square", "triangle", "star"]
    dataset = pipeline.make_train_dataset(
        str(tmp_path), "train", categories=read, batch_size=5, image_size=(64, 64)
    )
    features, labels = next(iter(dataset))
    assert sorted(features.image_ids.numpy()) == [1, 2, 3, 4, 5]
    truth = pycocotools.coco.COCO(str(tmp_path / "train.json"))
    for image_id, count in zip(features.image_ids, labels.num_boxes, strict=True):
        assert len(truth.getAnnIds(imgIds=[int(image_id)])) == count


def test_second_split_must_have_the_first_ones_categories(toy, tmp_path):
    content = json.loads((toy / "val.json").read_text())
    content["categories"].append({"id": 9, "name": "hexagon"})
    (tmp_path / "val.json").write_text(json.dumps(content))
    categories.write(
        categories.from_coco(content["categories"][:4]),
        str(tmp_path / "categories.json"),
    )
    images = f"--images={toy / 'val'}"
    changed = f"--annotations={tmp_path / 'val.json'}"
    done = convert(tmp_path, "val", "--format=coco", images, changed)
    assert done.returncode != 0
    assert "categories.json has 4 classes" in done.stderr
    assert not list(tmp_path.glob("*.tfrecord*"))


def test_wrong_folder_of_images_is_an_error_and_leaves_nothing(toy, tmp_path):
    options = coco_options(toy, "val")
    options[1] = f"--images={toy}"
    done = convert(tmp_path, "val", *options)
    assert done.returncode != 0
    assert "None of the 3 images" in done.stderr and "--images" in done.stderr
    assert os.listdir(tmp_path) == []


def test_shards_of_another_number_are_not_mixed_with_the_new_ones(toy, tmp_path):
    (tmp_path / record_files.file_name("val", 0, 7)).touch()
    done = convert(tmp_path, "val", *coco_options(toy, "val"), "--num_shards=64")
    assert done.returncode != 0
    assert "val-00000-of-00007.tfrecord" in done.stderr


@pytest.mark.skipif(not BCCD.exists(), reason="shared/data/bccd is not beside us")
def test_real_voc_photographs_convert(tmp_path):
    voc = ["--format=voc", f"--images={BCCD / 'JPEGImages'}", "--num_shards=3"]
    voc += [f"--annotations={BCCD / 'Annotations'}"]
    for split, count in (("train", 205), ("test", 72)):
        listed = f"--split_file={BCCD / 'ImageSets' / 'Main' / split}.txt"
        done = convert(tmp_path, split, *voc, listed, "--num_workers=2")
        assert done.returncode == 0, done.stderr
        assert f"{count}  images stored" in done.stdout
    files = record_files.find(str(tmp_path), "train")
    assert record_files.count_records(files) == [69, 68, 68]
    read = categories.read(str(tmp_path / "categories.json"))
    assert read.names == ["Platelets", "RBC", "WBC"]
    truth = pycocotools.coco.COCO(str(tmp_path / "train.json"))
    assert len(truth.getImgIds()) == 205
    first = tf_example.parse(next(iter(tf.data.TFRecordDataset(files))))
    listed = truth.loadAnns(truth.getAnnIds(imgIds=[int(first.image_id)]))
    assert [a["category_id"] for a in listed] == first.category_ids.numpy().tolist()
    sizes = first.boxes_yxyx_norm[:, 3] - first.boxes_yxyx_norm[:, 1]
    widths = [a["bbox"][2] for a in listed]
    assert (sizes * 640).numpy().tolist() == pytest.approx(widths, rel=1e-4)
