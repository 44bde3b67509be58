import pytest

from retinanet_tpu.conversion.formats import assembly, files, voc
from retinanet_tpu.data import annotations


def voc_file(folder, stem, objects=(("cat", 1, 2, 4, 6),), filename=None):
    boxes = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, x, y, right, bottom in objects
    )
    (folder / f"{stem}.xml").write_text(
        f"<annotation><filename>{filename or f'{stem}.jpg'}</filename><size>"
        f"<width>60</width><height>40</height></size>{boxes}</annotation>"
    )


def read(folder, image_names=(), **options):
    return voc.read(
        str(folder), image_folder=files.ImageFolder("", image_names), **options
    )


def test_classes_are_those_of_the_folder_sorted(tmp_path):
    voc_file(tmp_path, "b", [("dog", 1, 2, 4, 6)])
    voc_file(tmp_path, "a", [("cat", 0.5, 2, 4, 6)])
    annotated = read(tmp_path, ["b.png"])
    assert annotated.categories == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    dog = annotations.AnnotatedObject(2, 2, (1.0, 2.0, 3.0, 4.0), 12.0, False, 1)
    image = annotated.images[1]
    assert image[:5] == (2, "b.png", 40, 60, (dog,))
    assert annotations.source_line_of(image, dog) == "b.xml, object 1"


def test_annotation_ids_continue_and_image_ids_follow_the_stems(tmp_path):
    for stem in ("c", "a", "b"):
        voc_file(tmp_path, stem, [("cat", 1, 2, 4, 6)] * 2)
    annotated = read(tmp_path)
    assert [(i.image_id, i.file_name) for i in annotated.images] == [
        (1, "a.jpg"),
        (2, "b.jpg"),
        (3, "c.jpg"),
    ]
    ids = [o.annotation_id for i in annotated.images for o in i.objects]
    assert ids == [1, 2, 3, 4, 5, 6]


def test_stems_of_digits_are_the_image_ids(tmp_path):
    for stem in ("000030", "000004"):
        voc_file(tmp_path, stem)
    assert [i.image_id for i in read(tmp_path).images] == [4, 30]


@pytest.mark.parametrize("stems", [("1", "01"), ("1", "9" * 19), ("1", "b")])
def test_other_stems_are_numbered(tmp_path, stems):
    for stem in stems:
        voc_file(tmp_path, stem)
    assert [i.image_id for i in read(tmp_path).images] == [1, 2]


def test_names_give_the_order_of_ids(tmp_path):
    voc_file(tmp_path, "a", [("cat", 1, 2, 4, 6)])
    categories = assembly.number_classes(["dog", "cat"])
    annotated = read(tmp_path, categories=categories)
    assert annotated.images[0].objects[0].category_id == 2


def test_image_is_found_by_the_name_of_the_xml_file_else_by_its_content(tmp_path):
    voc_file(tmp_path, "renamed", filename="old.jpg")
    voc_file(tmp_path, "moved", filename="C:\\photos\\other.jpg")
    voc_file(tmp_path, "gone", filename="nowhere.jpg")
    annotated = read(tmp_path, ["renamed.png", "old.jpg", "other.png"])
    names = [i.file_name for i in annotated.images]
    assert names == ["gone.jpg", "other.png", "renamed.png"]


def test_two_images_of_one_stem_are_an_error(tmp_path):
    voc_file(tmp_path, "a")
    with pytest.raises(ValueError, match=r"has a\.jpg and a\.png"):
        read(tmp_path, ["a.png", "a.jpg"])


def test_unknown_class_is_named_with_its_file(tmp_path):
    voc_file(tmp_path, "a", [("Cat", 1, 2, 4, 6)])
    message = (
        r"a\.xml, object 1 has class 'Cat'.*'cat' differs only in case or whitespace"
    )
    with pytest.raises(ValueError, match=message):
        read(tmp_path, categories=assembly.number_classes(["cat"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation><object>", "cut off: no element found: line 1"),
        ("<annotation><object/></annotation>", "object 1 has no <name>"),
        (
            "<annotation><size><width>1e999</width></size></annotation>",
            "<size>: an image of 1e999 x None px",
        ),
    ],
)
def test_unreadable_file_drops_its_image(tmp_path, content, message):
    voc_file(tmp_path, "a")
    (tmp_path / "b.xml").write_text(content)
    annotated = read(tmp_path, ["a.jpg", "b.jpg"])
    assert [i.file_name for i in annotated.images] == ["a.jpg"]
    (event,) = annotated.events
    assert event[:2] == (files.UNREADABLE, "b.xml")
    assert message in event.detail


def test_errors_contain_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"contains no \.xml"):
        read(tmp_path)
    (tmp_path / "a.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"None of the 1 annotation files.*a\.xml"):
        read(tmp_path)


def test_stale_file_names_do_not_give_one_image_two_annotations(tmp_path):
    for stem in ("a", "b", "old"):
        voc_file(tmp_path, stem, filename="old.jpg")
    annotated = read(tmp_path, ["old.jpg"])
    assert [i.file_name for i in annotated.images] == ["a.jpg", "b.jpg", "old.jpg"]
    annotated = read(tmp_path)
    assert [i.file_name for i in annotated.images] == ["a.jpg", "b.jpg", "old.jpg"]


POINTS = "<x1>30</x1><y1>20</y1><x2>90</x2><y2>25</y2><x3>50</x3><y3>60</y3>"
PAIRS = "".join(f"<pt><x>{x}</x><y>{x - 10}</y></pt>" for x in (30, 70, 90))
ROTATED = "<cx>60</cx><cy>40</cy><w>60</w><h>40</h><angle>0</angle>"


@pytest.mark.parametrize(
    ("outline", "height"),
    [
        (f"<polygon>{POINTS}</polygon>", 40),
        (f"<polygon><points>{PAIRS}</points></polygon>", 60),
        (f"<segmentation>{POINTS}</segmentation>", 40),
        (f"<robndbox>{ROTATED}</robndbox>", 40),
    ],
)
def test_object_without_box_gets_that_of_its_outline(tmp_path, outline, height):
    voc_file(tmp_path, "a", [("cat", 1, 2, 4, 6)])
    path = tmp_path / "a.xml"
    text = path.read_text()
    others = (
        f"<object><name>dog</name>{outline}</object><object><name>d</name></object>"
    )
    path.write_text(text.replace("</annotation>", others + "</annotation>"))
    annotated = read(tmp_path, ["a.jpg"])
    (image,) = annotated.images
    assert [o.box_xywh for o in image.objects] == [(1, 2, 3, 4), (30, 20, 60, height)]
    assert [(e.kind, e.location, e.image) for e in annotated.events] == [
        (assembly.FROM_OUTLINE, "a.xml, object 2", "a.jpg"),
        (annotations.NO_BOX, "a.xml, object 3", "a.jpg"),
    ]
