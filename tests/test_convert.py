import json
import os
import pathlib
import re
import shlex
import signal

import pycocotools.coco
import pytest
import tensorflow as tf

import annotation_files
import repository
import tool_processes
from retinanet_tpu.data import (
    category_map,
    pipeline,
    record_files,
    record_index,
    tf_example,
)

pytestmark = pytest.mark.long

BCCD = repository.ROOT.parent / "shared" / "data" / "bccd"
# Kills itself when its progress bar has moved a number of times.
KILLED = """
import os, runpy, signal, sys, tqdm
count = int(sys.argv.pop(1))
class Bar(tqdm.tqdm):
    def update(self, n=1):
        global count
        count -= 1
        if not count:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(n)
tqdm.tqdm = Bar
runpy.run_module("retinanet_tpu.convert", run_name="__main__")
"""


@pytest.fixture(scope="module")
def convert():
    """A function that runs convert with flags."""
    with tool_processes.serve("convert") as run_once:
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
    tool = tool_processes.path("tools/examples/create_toy_dataset.py")
    done = tool_processes.run_python(tool, f"--output_dir={folder}", *numbers)
    assert done.returncode == 0, done.stderr
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_toy_set_becomes_a_data_directory_that_training_reads(
    convert, toy, tmp_path
):
    done = convert(tmp_path, *coco_options(toy, "train"), "--num_shards=2")
    assert done.returncode == 0, done.stderr
    assert "5  images stored" in done.stdout and "NUM_CLASSES = 4" in done.stdout
    assert sorted(os.listdir(tmp_path)) == [
        "categories.json",
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
        "train.index.json",
        "train.json",
    ]
    read = category_map.read(str(tmp_path / "categories.json"))
    assert read.names == ["circle", "square", "triangle", "star"]
    spec = pipeline.DatasetSpec(str(tmp_path), "train", read, image_size=(64, 64))
    dataset = pipeline.make_train_dataset(spec, batch_size=5)
    features, labels = next(iter(dataset))
    assert sorted(features.image_ids.numpy()) == [1, 2, 3, 4, 5]
    truth = pycocotools.coco.COCO(str(tmp_path / "train.json"))
    for image_id, count in zip(features.image_ids, labels.num_boxes, strict=True):
        assert len(truth.getAnnIds(imgIds=[int(image_id)])) == count


def test_a_second_split_must_have_the_categories_of_the_first(convert, toy, tmp_path):
    content = json.loads((toy / "val.json").read_text())
    content["categories"].append({"id": 9, "name": "hexagon"})
    (tmp_path / "val.json").write_text(json.dumps(content))
    category_map.write(
        category_map.from_coco(content["categories"][:4]),
        str(tmp_path / "categories.json"),
    )
    options = coco_options(toy, "val")
    options[2] = f"--annotations={tmp_path / 'val.json'}"
    done = convert(tmp_path, *options)
    assert done.returncode != 0
    assert "categories.json has 4 classes" in done.stderr
    assert "'hexagon' (id 9: 0 boxes)" in done.stderr
    assert not list(tmp_path.glob("*.tfrecord*"))


def test_a_wrong_image_folder_is_an_error_and_leaves_no_files(convert, toy, tmp_path):
    options = coco_options(toy, "val")
    options[1] = f"--images={toy}"
    done = convert(tmp_path, *options)
    assert done.returncode != 0
    assert "3 of 3 images are not found" in done.stderr
    assert "train/000001.jpg or val/000001.jpg" in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("ending", ["", ".tmp", ".state"])
def test_another_number_of_shards_is_an_error(convert, toy, tmp_path, ending):
    (tmp_path / (record_files.file_name("val", 0, 7) + ending)).touch()
    done = convert(tmp_path, *coco_options(toy, "val"), "--num_shards=64")
    assert done.returncode != 0
    assert f"val-00000-of-00007.tfrecord{ending}; delete" in done.stderr


def yolo_set(folder, count):
    """Writes a YOLO set of many images; returns the flags to convert it."""
    images = [
        annotation_files.SampleImage(
            f"{i:03d}.png", 32, 32, (annotation_files.Box("猫", 1 + i / 8, 2, 31, 30),)
        )
        for i in range(count)
    ]
    annotation_files.draw(folder / "images", images)
    labels = annotation_files.write("yolo", folder / "yolo", images, ["猫", "Hund"])
    return ["--format=yolo", f"--images={folder / 'images'}", f"--annotations={labels}"]


def test_images_of_one_folder_are_in_the_split_with_their_labels(convert, tmp_path):
    _, images, labels = yolo_set(tmp_path, 8)
    folder = pathlib.Path(labels.partition("=")[2])
    for number, path in enumerate(sorted(folder.glob("*.txt"))):
        split = folder / ("val" if number < 3 else "train")
        split.mkdir(exist_ok=True)
        path.rename(split / path.name)
    splits = ["--split=train", "--split=val"]
    flags = ["--format=yolo", images, f"{labels}/{{split}}", *splits]
    done = convert(tmp_path / "out", *flags)
    assert done.returncode == 0, done.stderr
    names = [names_in(tmp_path / "out" / f"{split}.json") for split in ("train", "val")]
    assert [len(n) for n in names] == [5, 3] and not set(names[0]) & set(names[1])


def test_a_file_that_no_conversion_wrote_is_not_replaced(convert, toy, tmp_path):
    path = tmp_path / "train.json"
    path.write_bytes((toy / "train.json").read_bytes())
    done = convert(tmp_path, *coco_options(toy, "train"))
    assert "train.json would be replaced, and no conversion wrote it" in done.stderr
    assert path.read_bytes() == (toy / "train.json").read_bytes()
    assert os.listdir(tmp_path) == ["train.json"]


def test_a_tilde_is_the_home_folder(convert, toy, tmp_path):
    done = convert("~/nowhere", *coco_options(toy, "train"), "--images=~/nowhere/x")
    assert f"No folder {os.path.expanduser('~')}/nowhere/x" in done.stderr


def names_in(path):
    return [image["file_name"] for image in json.loads(path.read_text())["images"]]


def test_a_val_fraction_keeps_its_images_when_others_are_added(convert, tmp_path):
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
        assert category_map.read(str(output / "categories.json")).names == [
            "猫",
            "Hund",
        ]
    assert found[40]["val"] < found[60]["val"]
    assert found[40]["train"] < found[60]["train"]
    other = tmp_path / "other"
    convert(other, *options, "--val_fraction=0.25", "--seed=1")
    assert set(names_in(other / "val.json")) != found[60]["val"]


def test_a_user_error_is_one_sentence_without_a_traceback(tmp_path):
    options = yolo_set(tmp_path, 2)
    (tmp_path / "yolo/data.yaml").write_text("names: {8: Hund}", "utf-8")
    options += ["--split=a", f"--output_dir={tmp_path / 'out'}"]
    done = tool_processes.run_python("-m", "retinanet_tpu.convert", *options)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: 000.txt, line 1 has class '1'; known are 8.")


def test_issues_are_counted_and_listed_with_their_locations(convert, tmp_path):
    options = yolo_set(tmp_path, 5)
    (tmp_path / "yolo/labels/001.txt").write_text("1 0.5 0.5 0 0.5\n")
    (tmp_path / "images/002.png").write_bytes(b"")
    output = tmp_path / "out"
    done = convert(output, *options, "--split=train")
    assert done.returncode == 0, done.stderr
    assert (output / "train.issues.txt").read_text("utf-8") == (
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
        if path.name != "train.issues.txt":
            path.unlink()
    assert convert(output, *options, "--split=train").returncode == 0
    assert not (output / "train.issues.txt").exists()


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
    read = category_map.read(str(tmp_path / "out" / "categories.json"))
    assert tuple(read.names) == annotation_files.NAMES


@pytest.mark.parametrize(
    ("kind", "given", "is_folder"),
    [
        ("createml", "coco", False),
        ("coco", "labelme", False),
        ("cvat", "voc", True),  # VOC's reader finds XML, and no object in it.
        ("labelme", "yolo", True),
        ("via_csv", "csv", False),
        ("csv", "openimages", False),
    ],
)
def test_a_wrong_format_is_recognized(convert, tmp_path, kind, given, is_folder):
    annotation_files.draw(tmp_path / "images")
    path = annotation_files.write(kind, tmp_path / "annotations")
    folder = path if path.is_dir() else path.parent
    options = [f"--format={given}", f"--images={tmp_path / 'images'}", "--split=train"]
    options += [f"--annotations={folder if is_folder else path}"]
    if given == "openimages":
        (tmp_path / "classes.csv").write_text("/m/1,cat\n")
        options.append(f"--classes={tmp_path / 'classes.csv'}")
    done = convert(tmp_path / "out", *options)
    assert done.returncode != 0
    message = f"use --format={kind.partition('_')[0]} --annotations={path}."
    assert done.stderr.rstrip().endswith(message)


def test_verified_labels_of_images_are_in_the_annotations(convert, tmp_path):
    annotation_files.draw(tmp_path / "images")
    path = annotation_files.write("openimages", tmp_path / "annotations")
    labels = tmp_path / "train-labels.csv"
    labels.write_text("ImageID,Source,LabelName,Confidence\nsub/c,v,/m/2,0\n")
    options = [f"--images={tmp_path / 'images'}", f"--annotations={path}"]
    options += ["--split=train", f"--image_labels={tmp_path}/{{split}}-labels.csv"]
    done = convert(tmp_path / "out", "--format=voc", *options)
    assert "--image_labels is for --format=openimages, not for voc" in done.stderr
    classes = f"--classes={path.parent}/class-descriptions.csv"
    done = convert(tmp_path / "out", "--format=openimages", classes, *options)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "train.json").read_text())
    ids = {entry["machine_id"]: entry["id"] for entry in content["categories"]}
    labeled = {
        image["file_name"]: image["neg_category_ids"]
        for image in content["images"]
        if "neg_category_ids" in image
    }
    assert labeled == {"sub/c.jpg": [ids["/m/2"]]}


def test_a_subset_of_open_images_has_the_images_of_its_classes(convert, tmp_path):
    annotation_files.draw(tmp_path / "images")
    path = annotation_files.write("openimages", tmp_path / "annotations")
    lines = (path.parent / "class-descriptions.csv").read_text().splitlines()
    subset = tmp_path / "subset.csv"
    subset.write_text(lines[-1] + "\n")
    label, name = lines[-1].split(",")
    rows = [row.split(",") for row in path.read_text().splitlines()]
    column = rows[0].index("LabelName")
    expected = {row[0] for row in rows if row[column] == label}
    assert len(expected) < len({row[0] for row in rows[1:]})
    options = ["--format=openimages", f"--images={tmp_path / 'images'}"]
    options += [f"--annotations={path}", f"--classes={subset}", "--split=train"]
    done = convert(tmp_path / "out", *options, "--drop_other_classes")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "train.json").read_text())
    assert [category["name"] for category in content["categories"]] == [name]
    stems = {image["file_name"].rpartition(".")[0] for image in content["images"]}
    assert stems == expected


def test_the_class_attribute_is_only_for_via(convert, tmp_path):
    annotation_files.draw(tmp_path / "images")
    path = annotation_files.write("via", tmp_path / "annotations")
    options = [f"--images={tmp_path / 'images'}", f"--annotations={path}"]
    options += ["--split=train", "--class_attribute=type"]
    assert convert(tmp_path / "out", "--format=via", *options).returncode == 0
    done = convert(tmp_path / "out", "--format=coco", *options)
    assert "--class_attribute is for --format=via, not for coco" in done.stderr


def test_a_second_split_of_any_format_uses_the_ids_of_the_first(convert, tmp_path):
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
        ([], "Give either --split=NAME or --val_fraction=FRACTION"),
        (["--split=a", "--val_fraction=0.5"], "Give either --split"),
        (["--val_fraction=1.5"], "--val_fraction=1.5 must be between 0 and 1"),
        (
            ["--split=a", "--names=x"],
            "--names is for --format=voc, csv",
        ),
        (["--split=a", "--split_file=/nowhere"], "No file /nowhere"),
        (["--val_fraction=0.5", "--split_file=x"], "leave out --val_fraction"),
        (["--split=a", "--group_by=x"], "--group_by is for --val_fraction"),
        (["--val_fraction=0.5", "--group_by=("], "is no regular expression"),
        (["--split=a,b"], "writes several splits, and no path distinguishes them"),
        (["--split=a,a"], "--split has a twice"),
        (["--split=a/b"], "--split has 'a/b'"),
        (["--split=a", "--images=/nowhere"], "No folder /nowhere"),
        (["--split=a", "--annotations=/nowhere"], "No data.yaml or classes.txt in"),
        (["--split=a", "--format=coco"], "labels is a folder; a file was expected"),
        (["--split=a", "--images="], "--images is empty"),
        (["--split=a", "--format=coco", "--annotations=/nowhere"], "No file /nowhere"),
    ],
)
def test_flags_that_contradict_each_other_are_an_error(
    convert, tmp_path, options, message
):
    done = convert(tmp_path / "out", *yolo_set(tmp_path, 2), *options)
    assert done.returncode != 0 and message in done.stderr
    assert not (tmp_path / "out").exists()


# In train, between the splits, in val, whose images are 13 and 7.
@pytest.mark.parametrize(
    ("killed_at", "left"),
    [(9, "train-00000-of-00003.tfrecord.tmp"), (19, "train-00000-of-00003.tfrecord")],
)
def test_a_killed_conversion_resumes_and_writes_the_same_bytes(
    convert, tmp_path, killed_at, left
):
    options = [*yolo_set(tmp_path, 20), "--val_fraction=0.3", "--num_shards=3"]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert convert(undisturbed, *options).returncode == 0
    done = tool_processes.run_python(
        "-c", KILLED, str(killed_at), *options, f"--output_dir={killed}"
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


def boxes_by_split(folder):
    """Returns the names of images and the classes of boxes that a split has."""
    found = {}
    names = category_map.read(str(folder / "categories.json"))
    names = {category.id: category.name for category in names.categories}
    for path in folder.glob("*.json"):
        if path.name != "categories.json" and not path.match("*.index.json"):
            content = json.loads(path.read_text())
            images = {image["file_name"] for image in content["images"]}
            classes = {names[box["category_id"]] for box in content["annotations"]}
            found[path.stem] = images, classes
    return found


@pytest.fixture
def two_splits(tmp_path):
    """A function that writes train and val of a format, val with a class of its own."""
    box = annotation_files.Box("cat", 2, 3, 20, 30)
    train = annotation_files.SampleImage("1.png", 32, 32, (box,))
    val = train._replace(boxes=(box, box._replace(name="ant, red")))

    def write(kind):
        for split, image in (("train", train), ("val", val)):
            annotation_files.draw(tmp_path / "images" / split, [image])
            names = list(dict.fromkeys(box.name for box in image.boxes))
            path = annotation_files.write(kind, tmp_path / split, [image], names)
        path = str(path).replace("val", "{split}")
        return [
            f"--format={kind}",
            f"--images={tmp_path}/images/{{split}}",
            f"--annotations={path}",
        ]

    return write


BOTH = {"train": ({"1.png"}, {"cat"}), "val": ({"1.png"}, {"cat", "ant, red"})}


@pytest.mark.parametrize("kind", ["coco", "voc", "csv", "labelme"])
def test_splits_of_one_call_share_their_classes(convert, two_splits, tmp_path, kind):
    done = convert(tmp_path / "out", *two_splits(kind), "--split=train,val")
    assert done.returncode == 0, done.stderr
    assert boxes_by_split(tmp_path / "out") == BOTH


@pytest.mark.parametrize("kind", ["coco", "voc", "csv", "labelme"])
def test_the_advice_for_a_new_class_in_a_later_split_works(
    convert, two_splits, tmp_path, kind
):
    written = two_splits(kind)
    options = [option.replace("{split}", "train") for option in written]
    assert convert(tmp_path / "out", *options, "--split=train").returncode == 0
    options = [option.replace("{split}", "val") for option in written]
    done = convert(tmp_path / "out", *options, "--split=val")
    assert done.returncode != 0
    message = done.stderr.splitlines()[-1]
    assert (
        "categories.json has 1 classes" in message and "not 'ant, red' (id" in message
    )
    one_call = re.search(
        r"empty --output_dir: (--split=.*?--annotations=.*?)\.(?: |$)", message
    )
    flags = [options[0], *shlex.split(one_call[1])]
    assert convert(tmp_path / "new", *flags).returncode == 0
    assert boxes_by_split(tmp_path / "new") == BOTH
    if kind != "coco":
        (names,) = [o for o in shlex.split(message) if o.startswith("--names=")]
        for split in ("train", "val"):
            flags = [o.replace("/val", f"/{split}") for o in options]
            done = convert(tmp_path / "again", *flags, names, f"--split={split}")
            assert done.returncode == 0, done.stderr
        assert boxes_by_split(tmp_path / "again") == BOTH


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_a_later_split_may_have_some_of_the_classes(
    convert, two_splits, tmp_path, kind
):
    options = two_splits(kind)
    for split in ("val", "train"):
        flags = [option.replace("{split}", split) for option in options]
        done = convert(tmp_path / "out", *flags, f"--split={split}")
        assert done.returncode == 0, done.stderr
    assert boxes_by_split(tmp_path / "out") == BOTH
    content = json.loads((tmp_path / "out" / "train.json").read_text())
    assert {c["name"] for c in content["categories"]} == {"cat", "ant, red"}


def test_classes_of_splits_that_differ_in_case_are_an_error(
    convert, two_splits, tmp_path
):
    options = two_splits("csv")
    path = tmp_path / "val" / "boxes.csv"
    path.write_text(path.read_text().replace('"ant, red"', "Cat"))
    done = convert(tmp_path / "out", *options, "--split=train,val")
    assert "'Cat' (id 1: 1 boxes" in done.stderr
    assert "differ in case or blanks only" in done.stderr


@pytest.mark.parametrize("kind", annotation_files.FORMATS)
def test_every_format_accepts_split_lists(convert, tmp_path, kind):
    annotation_files.draw(tmp_path / "images")
    path = annotation_files.write(kind, tmp_path / "annotations")
    lists = {"train": "data/images/sub/c.jpg\nÄpfel 1\n", "valid": "b.png\n./sub/c\n"}
    for split, text in lists.items():
        (tmp_path / f"{split}.txt").write_text(text, "utf-8")
    options = [
        f"--format={kind.partition('_')[0]}",
        f"--images={tmp_path}/images",
        "--split=train,val=valid",
    ]
    options += [f"--annotations={path}", f"--split_file={tmp_path}/{{split}}.txt"]
    if kind == "openimages":
        options.append(f"--classes={path.parent}/class-descriptions.csv")
    done = convert(tmp_path / "out", *options)
    assert done.returncode == 0, done.stderr
    found = {
        name: images for name, (images, _) in boxes_by_split(tmp_path / "out").items()
    }
    assert found == {
        "train": {"sub/c.jpg", "Äpfel 1.jpg"},
        "val": {"b.png", "sub/c.jpg"},
    }


def test_a_yolo_tree_is_split_by_its_data_yaml(convert, tmp_path):
    box = annotation_files.Box("cat", 2, 3, 20, 30)
    for split, names in {"train": "ab", "val": "cd"}.items():
        images = [
            annotation_files.SampleImage(f"{n}.png", 32, 32, (box,)) for n in names
        ]
        annotation_files.draw(tmp_path / "images" / split, images)
        written = annotation_files.write("yolo", tmp_path / split, images, ["cat"])
        (tmp_path / "labels").mkdir(exist_ok=True)
        written.rename(tmp_path / "labels" / split)
    text = "path: ../datasets/x\ntrain: images/train\nval: val.txt\nnames: {1: cat}\n"
    (tmp_path / "data.yaml").write_text(text)
    (tmp_path / "val.txt").write_text("./images/val/c.png\n./images/val/d.png\n")
    done = convert(
        tmp_path / "out",
        "--format=yolo",
        f"--images={tmp_path}",
        f"--annotations={tmp_path}",
        f"--split_file={tmp_path}/data.yaml",
        "--split=train,val",
    )
    assert done.returncode == 0, done.stderr
    assert boxes_by_split(tmp_path / "out") == {
        "train": ({"images/train/a.png", "images/train/b.png"}, {"cat"}),
        "val": ({"images/val/c.png", "images/val/d.png"}, {"cat"}),
    }
    assert not list((tmp_path / "out").glob("*.issues.txt"))


def test_issues_are_in_the_split_of_their_image_without_rows_of_0(convert, tmp_path):
    options = yolo_set(tmp_path, 40)
    (tmp_path / "images/041.png").write_bytes(
        (tmp_path / "images/000.png").read_bytes()
    )
    for number in range(40):
        with (tmp_path / f"yolo/labels/{number:03d}.txt").open("a") as file:
            file.write("1 0.1 0.1 0.5 0.1 0.5 0.5\n")
    with (tmp_path / "yolo/data.yaml").open("a") as file:
        file.write("kpt_shape: [0, 0]\n")
    output = tmp_path / "out"
    done = convert(output, *options, "--val_fraction=0.3")
    assert done.returncode == 0, done.stderr
    issues = []
    for split in ("train", "val"):
        names = {
            name.removesuffix(".png") for name in names_in(output / f"{split}.json")
        }
        lines = (output / f"{split}.issues.txt").read_text().splitlines()
        of_images = [line for line in lines if "classes without" not in line]
        assert {line[:3] for line in of_images} == names
        issues += of_images
    assert len(issues) == 41 and sum("without a label file" in i for i in issues) == 1
    assert not re.search(r"^ +0 ", done.stdout, re.MULTILINE)


@pytest.mark.skipif(not BCCD.exists(), reason="shared/data/bccd is not beside us")
def test_real_voc_images_convert(convert, tmp_path):
    voc = ["--format=voc", f"--images={BCCD / 'JPEGImages'}", "--num_shards=3"]
    voc += [f"--annotations={BCCD / 'Annotations'}"]
    for split, count in (("train", 205), ("test", 72)):
        listed = f"--split_file={BCCD / 'ImageSets' / 'Main' / split}.txt"
        done = convert(tmp_path, *voc, listed, f"--split={split}", "--num_workers=2")
        assert done.returncode == 0, done.stderr
        assert f"{count}  images stored" in done.stdout
    files = record_files.find(str(tmp_path), "train")
    assert record_index.count_records(files) == [69, 68, 68]
    read = category_map.read(str(tmp_path / "categories.json"))
    assert read.names == ["Platelets", "RBC", "WBC"]
    truth = pycocotools.coco.COCO(str(tmp_path / "train.json"))
    assert len(truth.getImgIds()) == 205
    first = tf_example.parse(next(iter(tf.data.TFRecordDataset(files))))
    listed = truth.loadAnns(truth.getAnnIds(imgIds=[int(first.image_id)]))
    assert [a["category_id"] for a in listed] == first.category_ids.numpy().tolist()
    sizes = first.boxes_yxyx_norm[:, 3] - first.boxes_yxyx_norm[:, 1]
    widths = [a["bbox"][2] for a in listed]
    assert (sizes * 640).numpy().tolist() == pytest.approx(widths, rel=1e-4)
