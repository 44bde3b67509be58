import pytest

from retinanet_tpu.conversion import box_cleaning, checks
from retinanet_tpu.data import annotations

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
VALID = (3.0, 4.0, 12.0, 9.0)
EVENT = annotations.ConversionEvent("images missing on disk", "b.jpg")


def image(number, *boxes, category_id=1, **changes):
    objects = tuple(
        annotations.AnnotatedObject(i, category_id, box, 1.0, False, i)
        for i, box in enumerate(boxes, start=1)
    )
    plain = annotations.AnnotatedImage(
        number, f"{number}.jpg", 24, 30, objects, f"{number}.xml", "object"
    )
    return plain._replace(**changes)


def annotated(*images, categories=CATEGORIES):
    return annotations.AnnotatedSet(list(images), categories)


def crowded(single):
    objects = tuple(o._replace(is_crowd=True) for o in single.objects)
    return single._replace(objects=objects)


def test_a_valid_set_passes():
    checks.check_set(annotated(image(1, VALID), image(2), image(3, VALID)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "Cat"], "'Cat' .id 2: 0 boxes. differ in case or blanks only"),
        (["traffic light", "trafficlight "], "differ in case or blanks only"),
        (["\u00e4", "a\u0308"], "differ in case or blanks only"),
        (["STRASSE", "straße"], "differ in case or blanks only"),
        (["cat", "cat"], "have one name"),
        (["cat", " "], "id 2.*no name"),
        (["cat", "\ud800"], "id 2.*no name that can be written"),
    ],
)
def test_names_that_look_the_same_are_an_error(names, message):
    categories = [{"id": i, "name": n} for i, n in enumerate(names, start=1)]
    with pytest.raises(ValueError, match=message) as caught:
        checks.check_set(annotated(image(1, VALID), categories=categories))
    if len(names[1]) > 1:
        assert "(id 1: 1 boxes, first 1.xml, object 1)" in str(caught.value)


def test_an_image_annotated_twice_is_an_error():
    with pytest.raises(ValueError, match=r"1\.jpg is annotated twice.*1\.xml.*2\.xml"):
        checks.check_set(annotated(image(1, VALID), image(2, VALID, file_name="1.jpg")))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([image(1), image(2)], "The 2 images have no box at all"),
        ([crowded(image(1, VALID))], "ignore all 1 boxes: each is a crowd"),
        ([image(1, (1, 2, 0.5, 9))], "narrower than 1 px"),
    ],
)
def test_a_set_without_trainable_boxes_is_an_error(images, message):
    with pytest.raises(ValueError, match=message):
        checks.check_set(annotated(*images))


@pytest.mark.parametrize(
    ("box", "is_norm", "message"),
    [
        (
            (0.1, 0.1, 0.2, 0.3),
            False,
            "boxes in 0..1.*choose a --format of fractions",
        ),
        ((100, 80, 20, 30), True, "boxes beyond 0..1.*choose a --format of pixels"),
        ((9, 9, -3, 2), False, "boxes of negative size.*order of the numbers"),
        ((9, 9, 0, 2), False, "boxes without area"),
        ((float("nan"), 9, 3, 2), False, "boxes that are not finite"),
    ],
)
def test_mostly_faulty_boxes_are_an_error_with_locations(box, is_norm, message):
    images = [image(i, box, is_norm=is_norm) for i in (1, 2)]
    images.append(image(3, (0.2, 0.2, 0.2, 0.2) if is_norm else VALID))
    images = [i._replace(is_norm=is_norm) for i in images]
    start = "2 of 3 boxes are unusable, 2 of them"
    with pytest.raises(ValueError, match=f"{start} .*{message}") as caught:
        checks.check_set(annotated(*images))
    assert "1.xml, object 1 (1.jpg, (" in str(caught.value)


def test_half_of_the_boxes_may_be_faulty():
    checks.check_set(annotated(image(1, (9, 9, 0, 2)), image(2, VALID)))


def test_a_split_without_images_or_boxes_is_an_error():
    full, empty = annotated(image(1, VALID)), annotated()
    checks.check_splits(full, full)
    for pair in ((full, empty), (empty, full), (full, annotated(image(2)))):
        with pytest.raises(ValueError, match=r"another --val_fraction or --seed"):
            checks.check_splits(*pair)


def test_splits_without_a_common_class_are_an_error():
    with pytest.raises(ValueError, match="no class in common"):
        checks.check_splits(
            annotated(image(1, VALID)), annotated(image(2, VALID, category_id=2))
        )


def check_conversion(images, events, num_annotated=3):
    before = [image(i, VALID) for i in range(num_annotated)]
    checks.check_conversion(images, events, annotated=before)


def test_a_conversion_with_few_issues_passes():
    check_conversion([image(1, VALID), image(2)], [EVENT])


def test_a_conversion_without_images_is_an_error_with_the_first_issue():
    message = "None of the 3 images.*--images.*images missing on disk: b.jpg"
    with pytest.raises(ValueError, match=message):
        check_conversion([], [EVENT])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (checks.OTHER_SIZE, "2 of 3 images.*resized after they were"),
        (box_cleaning.BoxIssue.OUTSIDE.kind, "2 of 3 boxes.*resized after they were"),
    ],
)
def test_a_conversion_that_lost_most_is_an_error(kind, message):
    events = [annotations.ConversionEvent(kind, f"{i}.jpg") for i in (1, 2)]
    check_conversion([image(0, VALID)], events[:1])
    with pytest.raises(ValueError, match=message):
        check_conversion([image(0, VALID)], events)


def test_a_conversion_without_trainable_boxes_is_an_error():
    with pytest.raises(ValueError, match="ignore all 1 boxes"):
        check_conversion([image(1, (1, 2, 0.5, 3)), image(2)], [])


def test_classes_without_a_box_become_events():
    events = checks.classes_without_boxes([image(1, VALID)], CATEGORIES)
    assert events == [annotations.ConversionEvent("classes without a box", "dog")]


def test_an_error_about_most_boxes_does_not_contain_their_treatment():
    images = [image(i, (9, 9, 0, 2)) for i in (1, 2)]
    with pytest.raises(ValueError, match=r"2 of them boxes without area: 1\.xml"):
        checks.check_set(annotated(*images))
    lost = annotations.ConversionEvent(checks.OUTSIDE_FOLDER, "1.jpg")
    with pytest.raises(ValueError, match=r"leaves the folder: 1\.jpg; 1\.jpg\. Check"):
        check_conversion([image(0, VALID)], [lost, lost], num_annotated=2)
