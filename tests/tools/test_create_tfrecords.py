import json
import os
import pathlib
import signal

import pycocotools.coco
import pytest
import tensorflow as tf

import annotation_files
import tool_processes
from retinanet_tpu.data import (
    categories,
    pipeline,
    record_files,
    tf_example,
)

ROOT = pathlib.Path(__file__).parents[2]
BCCD = ROOT.parent / "shared" / "data" / "bccd"
# Kills itself when its progress bar has moved a number of times.
KILLED = """
import os, runpy, signal, sys, tqdm
tool, count = sys.argv.pop(1), int(sys.argv.pop(1))
class Bar(tqdm.tqdm):
    def update(self, n=1):
        global count
        count -= 1
        if not count:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(n)
tqdm.tqdm = Bar
runpy.run_path(tool, run_name="__main__")
"""


@pytest.fixture(scope="module")
def convert():
    """A function that runs create_tfrecords.py with flags."""
    with tool_processes.serve("create_tfrecords.py") as run_once:
        yield lambda folder, *options: run_once(f"--output_dir={folder}", *options)


def coco_options(folder, split):
    return [
        "--format=coco",
        f"--images={folder / split}",
        f"--annotations={folder / split}.json",
        f"--split={split}",
    ]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    numbers = ["--num_train=5", "--num_val=3", "--image_size=96"]
    tool = tool_processes.path("create_toy_dataset.py")
    done = tool_processes.run_python(tool, f"--output_dir={folder}", *numbers)
    assert done.returncode == 0, done.stderr
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_toy_set_becomes_a_data_directory_that_training_reads(convert, toy, tmp_path):
    done = convert(tmp_path, *coco_options(toy, "train"), "--num_shards=2")
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


def test_second_split_must_have_the_first_ones_categories(convert, toy, tmp_path):
    content = json.loads((toy / "val.json").read_text())
    content["categories"].append({"id": 9, "name": "hexagon"})
    (tmp_path / "val.json").write_text(json.dumps(content))
    categories.write(
        categories.from_coco(content["categories"][:4]),
        str(tmp_path / "categories.json"),
    )
    options = coco_options(toy, "val")
    options[2] = f"--annotations={tmp_path / 'val.json'}"
    done = convert(tmp_path, *options)
    assert done.returncode != 0
    assert "categories.json has 4 classes" in done.stderr
    assert not list(tmp_path.glob("*.tfrecord*"))


def test_wrong_folder_of_images_is_an_error_and_leaves_nothing(convert, toy, tmp_path):
    options = coco_options(toy, "val")
    options[1] = f"--images={toy}"
    done = convert(tmp_path, *options)
    assert done.returncode != 0
    assert "None of the 3 images" in done.stderr and "--images" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("ending", ["", ".tmp", ".state"])
def test_shards_of_another_number_are_not_mixed_with_the_new_ones(
    convert, toy, tmp_path, ending
):
    (tmp_path / (record_files.file_name("val", 0, 7) + ending)).touch()
    done = convert(tmp_path, *coco_options(toy, "val"), "--num_shards=64")
    assert done.returncode != 0
    assert f"val-00000-of-00007.tfrecord{ending}; delete" in done.stderr


def yolo_set(folder, count):
    """Writes a YOLO set of many pictures; returns the flags to convert it."""
    pictures = [
        annotation_files.Picture(
            f"{i:03d}.png", 32, 32, (annotation_files.Box("猫", 1 + i / 8, 2, 31, 30),)
        )
        for i in range(count)
    ]
    annotation_files.draw(folder / "images", pictures)
    labels = annotation_files.write("yolo", folder / "yolo", pictures, ["猫", "Hund"])
    return ["--format=yolo", f"--images={folder / 'images'}", f"--annotations={labels}"]


def names_in(path):
    return [image["file_name"] for image in json.loads(path.read_text())["images"]]


def test_a_share_becomes_val_in_one_go_and_stays_when_images_come(convert, tmp_path):
    found = {}
    for count in (40, 60):
        options = yolo_set(tmp_path / str(count), count)
        output = tmp_path / f"{count}_out"
        done = convert(output, *options, "--val_fraction=0.25", "--num_shards=3")
        assert done.returncode == 0, done.stderr
        found[count] = {
            s: set(names_in(output / f"{s}.json")) for s in ("train", "val")
        }
        assert len(found[count]["train"]) + len(found[count]["val"]) == count
        assert record_files.find(str(output), "train") != []
        assert categories.read(str(output / "categories.json")).names == ["猫", "Hund"]
    assert found[40]["val"] < found[60]["val"]
    assert found[40]["train"] < found[60]["train"]
    other = tmp_path / "other"
    convert(other, *options, "--val_fraction=0.25", "--seed=1")
    assert set(names_in(other / "val.json")) != found[60]["val"]


def test_what_a_person_can_mend_ends_in_a_sentence_without_a_traceback(tmp_path):
    tool = tool_processes.path("create_tfrecords.py")
    options = yolo_set(tmp_path, 2)
    (tmp_path / "yolo/data.yaml").write_text("names: {8: Hund}", "utf-8")
    options += ["--split=a", f"--output_dir={tmp_path / 'out'}"]
    done = tool_processes.run_python(tool, *options)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 000.txt, line 1 has class '1'; known are 8.")


def test_what_was_found_is_counted_and_listed_with_its_place(convert, tmp_path):
    options = yolo_set(tmp_path, 5)
    (tmp_path / "yolo/labels/001.txt").write_text("1 0.5 0.5 0 0.5\n")
    (tmp_path / "images/002.png").write_bytes(b"")
    output = tmp_path / "out"
    done = convert(output, *options, "--split=train")
    assert done.returncode == 0, done.stderr
    assert (output / "train.findings.txt").read_text("utf-8") == (
        "001.txt, line 1: boxes without area, dropped "
        "(001.png, (0.5, 0.25, 0.5, 0.75))\n"
        "002.png: images of 0 bytes (0 bytes; annotated in 002.txt)\n"
        "Hund: classes without a box\n"
    )
    lines = " ".join(done.stdout.split())
    assert "1 boxes without area, dropped 001.txt, line 1 " in lines
    assert "1 images of 0 bytes 002.png " in lines
    assert "4 images stored " in lines
    # Mended, the set leaves no list of its former faults.
    yolo_set(tmp_path / "again", 5)
    (tmp_path / "images/002.png").unlink()
    (tmp_path / "images/001.png").unlink()
    for name in ("001", "002"):
        (tmp_path / f"yolo/labels/{name}.txt").unlink()
    (tmp_path / "yolo/data.yaml").write_text("names: {1: 猫}", "utf-8")
    for path in output.iterdir():
        if path.name != "train.findings.txt":
            path.unlink()
    assert convert(output, *options, "--split=train").returncode == 0
    assert not (output / "train.findings.txt").exists()


@pytest.mark.parametrize("kind", annotation_files.FORMATS)
def test_every_format_has_its_flag(convert, tmp_path, kind):
    annotation_files.draw(tmp_path / "images")
    path = annotation_files.write(kind, tmp_path / "annotations")
    flag = kind.partition("_")[0]
    options = [f"--format={flag}", f"--images={tmp_path / 'images'}"]
    options += [f"--annotations={path}", "--split=train"]
    if kind == "openimages":
        options.append(f"--classes={path.parent / 'class-descriptions.csv'}")
    done = convert(tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    read = categories.read(str(tmp_path / "out" / "categories.json"))
    assert tuple(read.names) == annotation_files.NAMES


def test_second_split_takes_the_numbers_of_the_first_whatever_its_format(
    convert, tmp_path
):
    train = yolo_set(tmp_path / "train", 3)
    assert convert(tmp_path / "out", *train, "--split=train").returncode == 0
    (tmp_path / "boxes.csv").write_text("000.png,1,2,30,31,Hund\n")
    val = ["--format=csv", f"--images={tmp_path / 'train' / 'images'}"]
    val += [f"--annotations={tmp_path / 'boxes.csv'}", "--split=val"]
    done = convert(tmp_path / "out", *val)
    assert done.returncode == 0, done.stderr
    (box,) = json.loads((tmp_path / "out" / "val.json").read_text())["annotations"]
    assert box["category_id"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Say either --split=NAME or --val_fraction=SHARE"),
        (["--split=a", "--val_fraction=0.5"], "Say either --split"),
        (["--val_fraction=1.5"], "--val_fraction=1.5 must lie between 0 and 1"),
        (["--split=a", "--names=x"], "--names is for --format=voc, csv, labelme, not"),
        (["--split=a", "--split_file=x"], "--split_file is for --format=voc, not"),
        (["--split=a", "--images=/nowhere"], "No folder /nowhere"),
        (["--split=a", "--annotations=/nowhere"], "No data.yaml or classes.txt in"),
        (["--split=a", "--format=coco"], "labels; check the flags"),
        (["--split=a", "--format=coco", "--annotations=/nowhere"], "No file /nowhere"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(convert, tmp_path, options, message):
    done = convert(tmp_path / "out", *yolo_set(tmp_path, 2), *options)
    assert done.returncode != 0 and message in done.stderr
    assert not (tmp_path / "out").exists()


# In train, between the splits, in val, whose pictures are 13 and 7.
@pytest.mark.parametrize(
    ("killed_at", "left"),
    [(9, "train-00000-of-00003.tfrecord.tmp"), (19, "train-00000-of-00003.tfrecord")],
)
def test_killed_conversion_goes_on_and_gives_the_same_bytes(
    convert, tmp_path, killed_at, left
):
    options = [*yolo_set(tmp_path, 20), "--val_fraction=0.3", "--num_shards=3"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert convert(undisturbed, *options).returncode == 0
    tool = tool_processes.path("create_tfrecords.py")
    done = tool_processes.run_python(
        "-c", KILLED, tool, str(killed_at), *options, f"--output_dir={killed}"
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (killed / left).exists()
    assert (killed / "train-00000-of-00003.tfrecord.state").exists()
    before = (killed / left).stat().st_mtime_ns
    done = convert(killed, *options)
    assert done.returncode == 0, done.stderr
    whole = killed / left.removesuffix(".tmp")
    assert whole.stat().st_mtime_ns == before
    assert contents(killed) == contents(undisturbed)


@pytest.mark.skipif(not BCCD.exists(), reason="shared/data/bccd is not beside us")
def test_real_voc_photographs_convert(convert, tmp_path):
    voc = ["--format=voc", f"--images={BCCD / 'JPEGImages'}", "--num_shards=3"]
    voc += [f"--annotations={BCCD / 'Annotations'}"]
    for split, count in (("train", 205), ("test", 72)):
        listed = f"--split_file={BCCD / 'ImageSets' / 'Main' / split}.txt"
        done = convert(tmp_path, *voc, listed, f"--split={split}", "--num_workers=2")
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
