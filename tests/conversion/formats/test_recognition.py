import json
import time

import pytest

import annotation_files
import tool_exports
from retinanet_tpu.conversion.formats import recognition


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """The path of the annotations of each format."""
    folder = tmp_path_factory.mktemp("exports")
    return {
        kind: annotation_files.write(kind, folder / kind)
        for kind in annotation_files.FORMATS
    }


@pytest.mark.parametrize("kind", annotation_files.FORMATS)
@pytest.mark.parametrize("given", ["coco", "voc", "yolo", "csv", "via", "labelstudio"])
def test_a_wrong_format_has_a_hint_and_the_right_one_has_none(exports, kind, given):
    flag, path = kind.partition("_")[0], exports[kind]
    hint = recognition.hint(str(path), given)
    if flag == given:
        assert hint == ""
    else:
        # One of the files is in a subfolder.
        assert f"use --format={flag} --annotations={path}" in hint


@pytest.mark.parametrize("kind", annotation_files.FORMATS)
def test_a_folder_in_place_of_a_file_has_a_hint_and_vice_versa(exports, kind):
    flag, path = kind.partition("_")[0], exports[kind]
    other = (
        min(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.parent
    )
    hint = recognition.hint(str(other), flag)
    assert f"use --format={flag} --annotations={path}" in hint


def test_the_coco_export_of_via_is_coco(tmp_path):
    path = tool_exports.via_coco(
        tmp_path, annotation_files.IMAGES, annotation_files.NAMES
    )
    assert "--format=coco" in recognition.hint(str(path), "via")


KITTI = (
    "Car 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.65 1.71 46.7 -1.59"
)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a.jpg 1,2,3,4,0 5,6,7,8,1\n", "lines of keras-yolo3. Write each box"),
        ("img/b c.jpg 1,2,3,4,0\n", ""),
        (KITTI, "KITTI labels. Convert"),
        ("1 2 3 4 5 6 7 8 plane 0", "DOTA labels. Convert"),
        ("images/a.jpg\nimages/b.jpg\n", "a list of images. Take the folder"),
        ('{"description": "", "tags": [], "size": {"height": 1, "width": 2}, '
         '"objects": []}', "a file of Supervisely. Export COCO or Pascal VOC"),
        ('{"asset": {}, "regions": []}', "a file of VoTT. Export Pascal VOC or CSV"),
        ('[{"DataRow ID": "x"}]', "a file of Labelbox. Export COCO"),
        ('{"data_row": {"id": "x"}, "projects": {}}\n{"data_row": {}}', "Labelbox"),
        ('[{"name": "a", "labels": []}]', "Scalabel or BDD100K. Export COCO"),
        ('{"project": {}, "metadata": {}, "view": {}}', "a file of VIA 3. Export COCO"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [], "score": 1}]',
         "detections in COCO's results format. Take the file of the annotations"),
        ('{"images": [], "annotations": [{"image_id": 1, "caption": ""}]}',
         "a COCO captions file. Take the instances file"),
        ('{"source-ref": "s3://b/a.jpg", "boxes": {}}', "SageMaker"),
        ('{"file_name": "a.jpg", "objects": {"bbox": []}}', "Hugging Face"),
        ("<dataset><images/></dataset>", "XML of dlib's imglab. Convert"),
        ("<!DOCTYPE html><html></html>", "a web page. Was the download refused?"),
        ("PK\x03\x04rest", "a ZIP archive or an Excel workbook. Unpack it"),
        ("version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS."),
        ("color,shape\n", ""),
        ("{}", ""),
        ("[]", ""),
        ("", ""),
        ("hello", ""),
        ("0.1 0.2 0.3", ""),
    ],
)  # fmt: skip
def test_files_of_other_tools_have_a_hint_with_a_remedy(tmp_path, text, hint):
    path = tmp_path / "file.txt"
    path.write_text(text)
    message = recognition.hint(str(path), "coco")
    assert message.startswith(f"{path} looks like ") == bool(hint)
    assert hint in message


def test_the_beginning_of_a_large_file_is_enough(tmp_path):
    content = annotation_files.coco_content(annotation_files.IMAGES * 2000)
    path = tmp_path / "large.json"
    path.write_text(json.dumps(content))
    assert path.stat().st_size > 500_000
    assert "--format=coco" in recognition.hint(str(path), "via")


def test_missing_files_have_no_hint(tmp_path):
    assert recognition.hint(str(tmp_path / "nothing"), "coco") == ""
    assert recognition.hint(str(tmp_path), "coco") == ""


@pytest.mark.parametrize(
    "text",
    [
        '"' + '\\"' * 200_000,
        "{" + '"' + '\\"' * 200_000,
        "[" * 400_000,
        '{"a":' * 100_000,
        "<" * 400_000,
        "1 " * 200_000,
        "1,2,3,4," * 50_000,
        "a.jpg " + "1,2,3,4,5 " * 40_000,
        '"' + "," * 400_000,
        "\n" * 400_000,
        "{" + '"a":1,' * 70_000,
    ],
    ids=range(11),
)
def test_a_hostile_file_takes_limited_time(text):
    start = time.process_time()
    recognition.recognize(text.encode())
    assert time.process_time() - start < 3
