import pytest

from retinanet_tpu.conversion.formats import csv_table, files
from retinanet_tpu.data import annotations

HEADER = "image,xmin,ymin,xmax,ymax,class\n"


def read(folder, text, image_names=("a.jpg", "b/c.jpg"), encoding="utf-8", **options):
    path = folder / "boxes.csv"
    path.write_bytes(text.encode(encoding))
    image_folder = files.ImageFolder(str(folder / "images"), image_names)
    return csv_table.read(str(path), image_folder=image_folder, **options)


def boxes(annotated):
    return {
        image.file_name: [
            (o.category_id, o.box_xywh, o.source_line) for o in image.objects
        ]
        for image in annotated.images
    }


@pytest.mark.parametrize(
    "header",
    [
        "image,xmin,ymin,xmax,ymax,class",
        "\ufefffilename,x1,y1,x2,y2,label",
        '"Path", XMin, YMin, XMax, YMax, Name',
    ],
)
def test_columns_are_identified_by_their_names(tmp_path, header):
    annotated = read(
        tmp_path, f"{header}\r\na.jpg,1,2,4,6, dog\r\nb/c.jpg,0, 0,5,5,cat\r\n"
    )
    assert boxes(annotated) == {
        "a.jpg": [(2, (1, 2, 3, 4), 2)],
        "b/c.jpg": [(1, (0, 0, 5, 5), 3)],
    }
    assert annotated.categories == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    location = annotations.source_line_of(
        annotated.images[0], annotated.images[0].objects[0]
    )
    assert location == "boxes.csv, line 2"


def test_columns_may_have_any_order_and_image_sizes_are_read(tmp_path):
    text = "ymin,ymax,id,class,filename,width,height,xmin,xmax\n"
    annotated = read(tmp_path, text + "2,6,99,cat,a.jpg,60,40,1,4\n", ["a.jpg"])
    assert boxes(annotated) == {"a.jpg": [(1, (1, 2, 3, 4), 2)]}
    assert (annotated.images[0].width, annotated.images[0].height) == (60, 40)


def test_a_table_of_keras_retinanet_needs_no_header(tmp_path):
    annotated = read(tmp_path, "b/c.jpg,,,,,\na.jpg,1,2,4,6,cat\n")
    assert boxes(annotated) == {"a.jpg": [(1, (1, 2, 3, 4), 2)], "b/c.jpg": []}


def test_lines_of_an_image_may_be_apart_and_its_path_absolute_or_relative(tmp_path):
    absolute, windows = tmp_path / "images/b/c.jpg", r"images\b\c.jpg"
    lines = [f"{path},1,2,4,6,cat" for path in ("b/c.jpg", absolute, "a.jpg", windows)]
    annotated = read(tmp_path, HEADER + "\n".join(lines))
    assert [len(image.objects) for image in annotated.images] == [1, 3]


def test_commas_and_line_breaks_in_quotes_are_part_of_the_name(tmp_path):
    annotated = read(tmp_path, HEADER + 'a.jpg,1,2,4,6,"one, two"\nb/c.jpg,1,2,4,6,x\n')
    assert annotated.categories[0]["name"] == "one, two"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("image,xmin,ymin,xmax\n", "line 1.*lacks ymax, class"),
        ("image xmin ymin xmax ymax class\n", "line 1.*lacks.*commas"),
        ("image;xmin;ymin;xmax;ymax;class\na.jpg;1,5;2;4;6;cat", "number, got '1,5'"),
        (HEADER + "a.jpg,1,2,4,6\n", "line 2 has 5 fields, expected 6"),
        (HEADER + "a.jpg,1,2,4,six,cat\n", "line 2: expected a number, got 'six'"),
        (HEADER + "\na.jpg,1,2,4,,cat\n", "line 3: expected a number, got ''"),
        (HEADER + "a.jpg,1,2,4,6,\n", "line 2 has a box and no class"),
    ],
)
def test_an_error_contains_the_line_that_cannot_be_read(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"boxes\.csv.*{message}"):
        read(tmp_path, text)


def test_other_encodings_are_an_error(tmp_path):
    text = HEADER + "a.jpg,1,2,4,6,Stra\u00dfe\n"
    with pytest.raises(ValueError, match=r"not UTF-8 text .line 2.*save it as UTF-8"):
        read(tmp_path, text, encoding="latin-1")


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_fields_may_be_separated_by_semicolons_or_tabs(tmp_path, sign):
    text = HEADER + "a.jpg,1,2,4,6,cat\n"
    (image,) = read(tmp_path, text.replace(",", sign)).images
    assert image.objects[0].box_xywh == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("image,x,y,width,height,class", "a.jpg,1,2,3,4,cat"),
        ("image,xmin,ymin,w,h,class", "a.jpg,1,2,3,4,cat"),
        ("class,bbox_x,bbox_y,bbox_width,bbox_height,image", "cat,1,2,3,4,a.jpg"),
    ],
)
def test_boxes_may_be_given_by_their_size(tmp_path, header, line):
    (image,) = read(tmp_path, f"{header}\n{line}\n").images
    assert image.objects[0].box_xywh == (1, 2, 3, 4)
    assert (image.width, image.height) == (0, 0)


def test_width_and_height_of_the_boxes_are_not_those_of_the_image(tmp_path):
    header = "image,xmin,ymin,xmax,ymax,width,height,class\n"
    own = "a.jpg,1,2,4,6,3,4,cat\na.jpg,1,2,7,9,6,7,cat\n"
    (image,) = read(tmp_path, header + own).images
    assert (image.width, image.height) == (0, 0)
    (image,) = read(tmp_path, header + own.replace("6,7,cat", "9,9,cat")).images
    assert (image.width, image.height) == (3, 4)


def test_a_line_of_missing_values_is_an_image_without_objects(tmp_path):
    lines = "a.jpg,nan,NaN,,null,nan\nb/c.jpg,,,,,No finding\na.jpg,1,2,4,6,nan\n"
    annotated = read(tmp_path, HEADER + lines)
    assert boxes(annotated) == {"a.jpg": [(1, (1, 2, 3, 4), 4)], "b/c.jpg": []}
    assert [c["name"] for c in annotated.categories] == ["nan"]
    (event,) = annotated.events
    assert event.kind.startswith("classes on lines without a box")
    assert event.detail == "'No finding' on 1 lines"


def test_whole_numbers_with_decimals_and_names_with_blanks_are_one_class(tmp_path):
    labels = ["1", "1.0", " 1 ", "1.00"]
    lines = [f"a.jpg,1,2,4,6,{label}" for label in labels]
    annotated = read(tmp_path, HEADER + "\n".join(lines))
    assert [c["name"] for c in annotated.categories] == ["1"]


def test_concatenated_tables_and_empty_last_fields_are_read(tmp_path):
    annotated = read(tmp_path, 2 * f"{HEADER}a.jpg,1,2,4,6,cat,,\n")
    assert [o[2] for o in boxes(annotated)["a.jpg"]] == [2, 4]


def test_a_table_without_classes_requires_a_single_class(tmp_path):
    text = "image,xmin,ymin,xmax,ymax\na.jpg,1,2,4,6\n"
    with pytest.raises(ValueError, match=r"lacks class; add .* with --names=NAME"):
        read(tmp_path, text)
    annotated = read(tmp_path, text, categories=[{"id": 1, "name": "wheat"}])
    assert boxes(annotated) == {"a.jpg": [(1, (1, 2, 3, 4), 2)]}


def test_a_box_in_one_field_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(ValueError, match="bbox has all numbers of a box; write them"):
        read(tmp_path, 'image_id,width,height,bbox\na,9,9,"[1, 2, 3, 4]"\n')
