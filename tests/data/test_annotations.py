import json

import pytest

from retinanet_tpu.data import annotations
from retinanet_tpu.data.annotation_formats import coco

BOX = annotations.AnnotatedObject(9, 2, (1.0, 2.0, 3.5, 4.0), 14.0, True)
BOXES = (BOX, BOX._replace(annotation_id=7))
IMAGES = [
    annotations.AnnotatedImage(5, "ä/猫 1.jpg", 40, 60, BOXES),
    annotations.AnnotatedImage(4, "b.jpg", 30, 50, ()),
]
CATEGORIES = [{"id": 2, "name": "猫"}, {"id": 70, "name": "never seen"}]


def named(count, *, prefix=""):
    images = [IMAGES[1]._replace(file_name=f"{prefix}{i}.jpg") for i in range(count)]
    return annotations.AnnotatedSet(images, CATEGORIES)


def val_names(annotated, **options):
    options = {"val_fraction": 0.2, "seed": 0} | options
    train, val = annotations.split_by_name(annotated, **options)
    assert len(train.images) + len(val.images) == len(annotated.images)
    return {image.file_name for image in val.images}


def test_written_coco_file_reads_back_and_has_info(tmp_path):
    path = tmp_path / "written.json"
    written = annotations.AnnotatedSet(IMAGES, CATEGORIES)
    annotations.write_coco(written, str(path), description="say so")
    read = coco.read(str(path))
    assert [image.objects[:1] for image in read.images] == [
        (BOX._replace(place=9),),
        (),
    ]
    plain = [i._replace(source="", unit="", objects=()) for i in read.images]
    assert plain == [i._replace(objects=()) for i in IMAGES]
    assert read.categories == CATEGORIES
    assert json.loads(path.read_text())["info"] == {"description": "say so"}


def test_written_coco_file_is_plain_json_on_one_line(tmp_path):
    path = tmp_path / "written.json"
    written = annotations.AnnotatedSet(IMAGES, CATEGORIES)
    annotations.write_coco(written, str(path), description="")
    text = path.read_text()
    assert text == json.dumps(json.loads(text)) + "\n"


def test_later_images_move_none_of_the_earlier_ones():
    few, many = named(200), named(200)
    many.images[100:100] = named(300, prefix="later").images
    assert val_names(many) & {i.file_name for i in few.images} == val_names(few)


def test_order_and_ids_do_not_matter_to_the_split():
    some = named(200)
    turned = some._replace(
        images=[i._replace(image_id=n) for n, i in enumerate(some.images[::-1])]
    )
    assert val_names(turned) == val_names(some)


def test_the_way_a_system_composes_letters_does_not_matter_to_the_split():
    composed, taken_apart = named(100, prefix="\u00e4"), named(100, prefix="a\u0308")
    positions = [
        [i for i, image in enumerate(s.images) if image.file_name in val_names(s)]
        for s in (composed, taken_apart)
    ]
    assert positions[0] == positions[1] != []


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
def test_split_has_about_the_share_wanted(fraction):
    # Four standard deviations of a binomial, and the names are fixed.
    found = len(val_names(named(2000), val_fraction=fraction))
    margin = 4 * (2000 * fraction * (1 - fraction)) ** 0.5
    assert abs(found - 2000 * fraction) < margin


def test_a_larger_share_keeps_what_a_smaller_one_had_and_a_seed_changes_all():
    some = named(500)
    assert val_names(some, val_fraction=0.1) < val_names(some, val_fraction=0.2)
    both = val_names(some, seed=1) & val_names(some)
    assert 0 < len(both) < 50
