import json

import pytest

import annotation_files
from retinanet_tpu.conversion.formats import label_studio

SIDES = {"original_width": 64, "original_height": 32}
PLACE = {"x": 25, "y": 25, "width": 50, "height": 50}


def result(kind="rectanglelabels", labels=("cat",), **changes):
    value = {**PLACE, kind: list(labels), **changes.pop("value", {})}
    return {"type": kind, "value": value, "to_name": "image", **SIDES, **changes}


def task(*results, image="a.jpg", **changes):
    annotation = {"result": list(results), **changes}
    return {"data": {"image": image}, "annotations": [annotation]}


def read(tmp_path, content, name="a.jpg", **options):
    annotation_files.draw(tmp_path, [annotation_files.SampleImage(name, 64, 32, ())])
    path = tmp_path / "tasks.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    image_folder = annotation_files.image_folder(tmp_path)
    return label_studio.read(str(path), image_folder=image_folder, **options)


def boxes(annotated):
    names = {c["id"]: c["name"] for c in annotated.categories}
    return [
        (names[o.category_id], o.box_xywh) for i in annotated.images for o in i.objects
    ]


def kinds(annotated):
    return [event.kind for event in annotated.events]


def test_percentages_are_converted_to_px(tmp_path):
    annotated = read(tmp_path, [task(result())])
    assert boxes(annotated) == [("cat", (16, 8, 32, 16))]
    (image,) = annotated.images
    assert (image.width, image.height) == (64, 32)
    assert (image.source, image.unit) == ("tasks.json, task 1", "result")


@pytest.mark.parametrize(
    ("kind", "value", "box"),
    [
        # The upper left corner stays in place.
        ("rectanglelabels", {"rotation": 90}, (0, 8, 16, 32)),
        ("rectanglelabels", {"rotation": 180}, (-16, -8, 32, 16)),
        ("ellipselabels", {"radiusX": 25, "radiusY": 25}, (0, 0, 32, 16)),
        ("polygonlabels", {"points": [[0, 0], [50, 0], [25, 50]]}, (0, 0, 32, 16)),
    ],
)
def test_shapes_are_replaced_by_the_boxes_around_them(tmp_path, kind, value, box):
    annotated = read(tmp_path, [task(result(kind, value=value))])
    assert boxes(annotated) == [("cat", pytest.approx(box))]
    assert kinds(annotated) == ["shapes stored as the boxes around them"]


def test_brushes_and_keypoints_are_dropped_and_counted(tmp_path):
    brush = result("brushlabels")
    brush["value"] = {"format": "rle", "rle": [1, 2], "brushlabels": ["cat"]}
    point = result("keypointlabels")
    del point["value"]["height"]
    annotated = read(tmp_path, [task(brush, point, result())])
    assert len(boxes(annotated)) == 1
    assert kinds(annotated) == ["shapes that enclose nothing, dropped"] * 2


def test_labels_may_be_a_separate_result(tmp_path):
    shape = result("rectangle", id="r1")
    del shape["value"]["rectangle"]
    labels = result("labels", id="r1")
    choice = {"type": "choices", "value": {"choices": ["good"]}, "id": "r1"}
    assert boxes(read(tmp_path, [task(shape, labels, choice)])) == [
        ("cat", (16, 8, 32, 16))
    ]


def test_each_label_of_a_result_is_a_box(tmp_path):
    annotated = read(tmp_path, [task(result(labels=["cat", "dog"]))])
    assert [name for name, _ in boxes(annotated)] == ["cat", "dog"]


def test_canceled_annotations_and_predictions_are_not_read(tmp_path):
    canceled = {"result": [result()], "was_canceled": True}
    entry = {
        "data": {"image": "a.jpg"},
        "annotations": [canceled, {"result": [result(labels=["dog"])]}],
        "predictions": [{"result": [result(labels=["bird"])]}],
    }
    annotated = read(tmp_path, [entry])
    assert [name for name, _ in boxes(annotated)] == ["dog"]
    assert kinds(annotated) == []
    entry["annotations"].pop()
    annotated = read(tmp_path, [entry])
    assert annotated.images == []
    assert kinds(annotated) == [
        "tasks without annotation, left out",
        "images without annotation, left out",
    ]


@pytest.mark.parametrize(
    ("truths", "times", "expected"),
    [
        ((False, False), ("2026-01-01T10", "2026-01-01T09"), "first"),
        ((False, False), ("2026-01-01T10", "2026-01-01T11"), "second"),
        ((True, False), ("2026-01-01T10", "2026-01-01T11"), "first"),
        ((False, False), ("", ""), "second"),
    ],
)
def test_of_several_annotations_the_truth_or_the_latest_is_read(
    tmp_path, truths, times, expected
):
    listed = [
        {"result": [result(labels=[name])], "ground_truth": truth, "updated_at": time}
        for name, truth, time in zip(("first", "second"), truths, times, strict=True)
    ]
    annotated = read(tmp_path, [{"data": {"image": "a.jpg"}, "annotations": listed}])
    assert [name for name, _ in boxes(annotated)] == [expected]
    assert kinds(annotated) == [
        "tasks annotated several times, of which one annotation was used"
    ]


@pytest.mark.parametrize(
    "url",
    [
        "/data/upload/7/0a1b2c3d-my%20cat.jpg",
        "/data/upload/7/my%20cat.jpg",
        "/data/local-files/?d=photos/my%20cat.jpg",
        "/data/local-files/?d=C%3A%5Cphotos%5Cmy%20cat.jpg",
        "https://host/bucket/my%20cat.jpg?signature=a/b.png",
        "s3://bucket/photos/my cat.jpg",
        "gs://bucket/0a1b2c3d-my cat.jpg",
        "my cat.jpg",
    ],
)
def test_the_image_of_a_url_is_found(tmp_path, url):
    annotated = read(tmp_path, [task(result(), image=url)], "my cat.jpg")
    assert [image.file_name for image in annotated.images] == ["my cat.jpg"]
    assert kinds(annotated) == []


def test_the_name_with_the_upload_prefix_has_precedence(tmp_path):
    annotation_files.draw(tmp_path, [annotation_files.SampleImage("a.jpg", 64, 32, ())])
    content = [task(result(), image="/data/upload/7/0a1b2c3d-a.jpg")]
    annotated = read(tmp_path, content, "0a1b2c3d-a.jpg")
    assert [image.file_name for image in annotated.images] == ["0a1b2c3d-a.jpg"]


def test_the_image_is_the_only_text_that_names_one(tmp_path):
    entry = task(result())
    entry["data"] = {"photo": "a.jpg", "author": "b"}
    assert len(read(tmp_path, [entry]).images) == 1
    entry["data"] = {"photo": "a.jpg", "mask": "b.png"}
    with pytest.raises(
        ValueError, match=r"no `image`, and it is .* which of photo, mask"
    ):
        read(tmp_path, [entry])


def test_a_result_without_label_is_counted(tmp_path):
    annotated = read(tmp_path, [task(result(), result(labels=[]))])
    assert kinds(annotated) == ["boxes without a class, dropped"]
    assert annotated.events[0].location == "tasks.json, task 1, result 2"


def test_images_turned_in_label_studio_are_left_out(tmp_path):
    annotated = read(tmp_path, [task(result(image_rotation=90))])
    assert kinds(annotated)[0] == "images turned in Label Studio, left out"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list"),
        ([7], "task 1 is 7; expected an object"),
        ([{"image": "a.jpg", "label": []}], "task 1 lacks data; it has image, label"),
        ([{"data": {"image": "a.jpg"}}], "task 1 lacks annotations or completions"),
        ([{"data": 7, "annotations": []}], "data is 7; expected an object"),
        ([{"data": {"image": "a"}, "annotations": [7]}], "annotation is 7; expected"),
        ([task(image="data:image/png;base64,AAAA")], "contains the image itself"),
        ([task(7)], "task 1, result 1 is 7; expected an object"),
        ([task(result(original_width=None))], "result 1 lacks original_width"),
        ([task(result(original_width=0))], "an image of 0 x 32 px"),
        ([task(result(original_width=1e999))], "an image of inf x 32 px"),
        ([task(result(value={"x": None}))], "result 1 lacks x"),
        ([task(result(value={"x": "a"}))], "expected a number, got 'a'"),
        ([task(result(value={"rotation": []}), result(value={"rotation": [1]}))],
         r"expected a number, got \[1\]"),
        ([task(result(value={"points": [[1, 2, 3]]}))], r"not \[\[x, y\], ...\]"),
        ([task(result(value={"points": 7}))], "points is 7; expected a list"),
        ([task(result(value={"points": [[1, 2]]}))], "polygon of 1 points"),
        ([task(result(value={"rectanglelabels": "cat"}))], "expected a list"),
        ([task(result(labels=[["cat"]]))], r"class is \['cat'\]; expected text"),
        ([task(result(), result(to_name="other"))], "results of several images"),
        ([task(result(), result(original_width=65))], "results of several images"),
        ([task(result(item_index=1), result())], "results of several images"),
        ([task(result(item_index=[1]), result())], "results of several images"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)  # fmt: skip
def test_another_structure_is_an_error_with_its_location(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)
