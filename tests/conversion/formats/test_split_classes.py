import pytest

from retinanet_tpu.conversion.formats import split_classes
from retinanet_tpu.data import annotations, category_map

CATEGORIES = [{"id": 2, "name": "猫"}, {"id": 70, "name": "never seen"}]
BOX = annotations.AnnotatedObject(9, 2, (1.0, 2.0, 3.5, 4.0), 14.0, True)
IMAGE = annotations.AnnotatedImage(4, "b.jpg", 30, 50, (), "b.xml", "object")


def listed(**ids):
    return [{"id": i, "name": name} for name, i in ids.items()]


def common(*sets, known=None):
    sets = [annotations.AnnotatedSet([], categories) for categories in sets]
    known = known and category_map.from_coco(known)
    return {c["name"]: c["id"] for c in split_classes.common_classes(sets, known)}


def test_classes_are_those_of_all_splits():
    assert common(listed(cat=1, dog=2), listed(cat=1, emu=7)) == dict(
        cat=1, dog=2, emu=7
    )
    assert common(listed(dog=5, cat=0)) == dict(dog=5, cat=0)


def test_machine_ids_and_verified_labels_keep_their_classes():
    categories = [{"id": 1, "name": "cat", "machine_id": "/m/01", "color": "red"}]
    image = IMAGE._replace(positive_ids=(1,), negative_ids=(1,))
    sets = [
        annotations.AnnotatedSet([image], categories),
        annotations.AnnotatedSet([], listed(ant=1)),
    ]
    (split, _) = split_classes.unified(sets, None, has_ids=False)
    assert split.categories == [
        {"id": 1, "name": "ant"},
        {"id": 2, "name": "cat", "machine_id": "/m/01"},
    ]
    assert (split.images[0].positive_ids, split.images[0].negative_ids) == ((2,), (2,))


def test_classes_are_numbered_by_name_where_the_splits_disagree():
    expected = dict(cat=1, dog=2, emu=3)
    assert common(listed(cat=1, dog=2), listed(dog=1, emu=2)) == expected
    assert common(listed(emu=1), listed(cat=1, dog=2)) == expected
    assert common(listed(cat=9), listed(cat=8, dog=9, emu=1)) == expected


def test_classes_of_earlier_splits_keep_their_ids():
    known = listed(dog=4, cat=9)
    assert common(listed(cat=1), known=known) == dict(dog=4, cat=9)
    assert common(listed(ant=1, cat=2), known=known) == dict(dog=4, cat=9, ant=10)


def test_objects_get_the_new_id_of_their_class():
    image = IMAGE._replace(objects=(BOX, BOX._replace(category_id=70)))
    some = annotations.AnnotatedSet([image], CATEGORIES)
    same = split_classes.with_classes(some, CATEGORIES, counts_changes=True)
    assert same == some
    classes = listed(**{"never seen": 1, "猫": 2, "dog": 3})
    other = split_classes.with_classes(some, classes, counts_changes=True)
    assert [o.category_id for o in other.images[0].objects] == [2, 1]
    assert other.categories == classes
    (event,) = other.events
    assert "category ids were changed" in event.kind and event.location == "b.xml"
    assert not split_classes.with_classes(some, classes, counts_changes=False).events


def test_new_class_is_described_with_a_flag_value_of_all_names():
    known = category_map.from_coco(listed(dog=4, cat=9))
    image = IMAGE._replace(objects=(BOX,))
    old = annotations.AnnotatedSet([], listed(cat=1))
    assert split_classes.new_class([old], known) is None
    new = annotations.AnnotatedSet([image], listed(cat=1, **{'a "b", c': 2}))
    described, names = split_classes.new_class([old, new], known)
    assert described == "'a \"b\", c' (id 2: 1 boxes, first b.xml, object 0)"
    assert names == 'dog,cat,"a ""b"", c"'


def test_names_that_differ_between_splits_in_case_only_are_refused():
    sets = [annotations.AnnotatedSet([], listed(**{name: 1})) for name in ("a", "A")]
    with pytest.raises(ValueError, match="differ in case or blanks only"):
        split_classes.unified(sets, None, has_ids=True)
