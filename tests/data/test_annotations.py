import json

import pytest

from retinanet_tpu.conversion.formats import coco
from retinanet_tpu.data import annotations

BOX = annotations.AnnotatedObject(9, 2, (1.0, 2.0, 3.5, 4.0), 14.0, True)
BOXES = (BOX, BOX._replace(annotation_id=7))
IMAGES = [
    annotations.AnnotatedImage(5, "ä/猫 1.jpg", 40, 60, BOXES),
    annotations.AnnotatedImage(4, "b.jpg", 30, 50, ()),
]
CATEGORIES = [{"id": 2, "name": "猫"}, {"id": 70, "name": "unused"}]


def test_a_written_coco_file_reads_back_and_has_info(tmp_path):
    path = tmp_path / "written.json"
    written = annotations.AnnotatedSet(IMAGES, CATEGORIES)
    annotations.write_coco(written, str(path), description="a split")
    read = coco.read(str(path))
    assert [image.objects[:1] for image in read.images] == [
        (BOX._replace(source_line=9),),
        (),
    ]
    plain = [i._replace(source="", unit="", objects=()) for i in read.images]
    assert plain == [i._replace(objects=()) for i in IMAGES]
    assert read.categories == CATEGORIES
    assert json.loads(path.read_text())["info"] == {"description": "a split"}


def test_a_written_coco_file_is_plain_json_on_one_line(tmp_path):
    path = tmp_path / "written.json"
    written = annotations.AnnotatedSet(IMAGES, CATEGORIES)
    annotations.write_coco(written, str(path), description="")
    text = path.read_text()
    assert text == json.dumps(json.loads(text)) + "\n"


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("train/dog_jpg.rf.0a1b2c.jpg", "dog"),
        ("IMG_1_JPG.rf.0a1b.jpg", "IMG_1"),
        ("a_mp4-12_png.rf.x-_y.png", "a_mp4-12"),
        ("dog.rf.0a1b.jpg", "dog"),
        ("dog_jpg.jpg", "dog_jpg.jpg"),
        ("b/dog.jpg", "b/dog.jpg"),
        (".rf.jpg", ".rf.jpg"),
    ],
)
def test_roboflow_versions_share_the_name_of_their_source(name, source):
    assert annotations.source_name(name) == source
    sources = annotations.sources_of_versions([name, "other.jpg"])
    assert sources == ({source} if source != name else set())
