import pytest

from retinanet_tpu.conversion.formats import splits
from retinanet_tpu.data import annotations

CATEGORIES = [{"id": 2, "name": "猫"}, {"id": 70, "name": "never seen"}]
BOX = annotations.AnnotatedObject(9, 2, (1.0, 2.0, 3.5, 4.0), 14.0, True)
IMAGE = annotations.AnnotatedImage(4, "b.jpg", 30, 50, (), "b.xml", "object")


def named(count, *, prefix=""):
    images = [IMAGE._replace(file_name=f"{prefix}{i}.jpg") for i in range(count)]
    return annotations.AnnotatedSet(images, CATEGORIES)


def val_names(annotated, **options):
    options = {"val_fraction": 0.2, "seed": 0} | options
    parts = splits.by_fraction(annotated, **options)
    train, val = parts["train"], parts["val"]
    assert len(train.images) + len(val.images) == len(annotated.images)
    return {image.file_name for image in val.images}


def test_later_images_move_no_earlier_ones():
    few, many = named(200), named(200)
    many.images[100:100] = named(300, prefix="later").images
    assert val_names(many) & {i.file_name for i in few.images} == val_names(few)


def test_order_and_ids_do_not_change_the_split():
    some = named(200)
    reversed_set = some._replace(
        images=[i._replace(image_id=n) for n, i in enumerate(some.images[::-1])]
    )
    assert val_names(reversed_set) == val_names(some)


def test_composition_of_letters_does_not_change_the_split():
    composed, decomposed = named(100, prefix="\u00e4"), named(100, prefix="a\u0308")
    positions = [
        [i for i, image in enumerate(s.images) if image.file_name in val_names(s)]
        for s in (composed, decomposed)
    ]
    assert positions[0] == positions[1] != []


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
def test_split_has_about_the_requested_fraction(fraction):
    # Four standard deviations of a binomial, and the names are fixed.
    num_val = len(val_names(named(2000), val_fraction=fraction))
    margin = 4 * (2000 * fraction * (1 - fraction)) ** 0.5
    assert abs(num_val - 2000 * fraction) < margin


def test_a_larger_fraction_extends_a_smaller_one_and_a_seed_changes_all():
    some = named(500)
    assert val_names(some, val_fraction=0.1) < val_names(some, val_fraction=0.2)
    both = val_names(some, seed=1) & val_names(some)
    assert 0 < len(both) < 50


def test_versions_of_one_image_stay_in_one_split():
    some = named(200)
    images = [
        image._replace(file_name=f"{image.file_name[:-4]}_jpg.rf.{version}.jpg")
        for version in ("0a", "1b", "2c")
        for image in some.images
    ]
    sources = {*map(annotations.source_name, val_names(some._replace(images=images)))}
    parts = splits.by_fraction(some._replace(images=images), val_fraction=0.2, seed=0)
    trained = {annotations.source_name(i.file_name) for i in parts["train"].images}
    assert len(sources) > 20 and not sources & trained


def test_a_custom_pattern_keeps_its_groups_in_one_split():
    images = [IMAGE._replace(file_name=f"{i // 10}/{i}.jpg") for i in range(600)]
    group_fn = splits.group_fn(r"^(\d+)/")
    parts = splits.by_fraction(
        annotations.AnnotatedSet(images, CATEGORIES),
        val_fraction=0.3,
        seed=0,
        group_fn=group_fn,
    )
    groups = [{group_fn(i.file_name) for i in part.images} for part in parts.values()]
    assert len(groups[0] | groups[1]) == 60 and not groups[0] & groups[1]
    assert splits.group_fn("x")("a.jpg") == "a.jpg"
    assert splits.group_fn("[a-c]+")("12abc.jpg") == "abc"
    with pytest.raises(ValueError, match=r"--group_by='\(' is no regular expression"):
        splits.group_fn("(")


def test_events_go_to_the_split_of_their_image():
    some = named(50)
    events = [
        annotations.ConversionEvent("odd", "x", image=i.file_name) for i in some.images
    ]
    general = annotations.ConversionEvent("renumbered", "x.json")
    parts = splits.by_fraction(
        some._replace(events=(*events, general)), val_fraction=0.5, seed=0
    )
    for name, part in parts.items():
        names = {image.file_name for image in part.images}
        assert {f.image for f in part.events if f.image} == names
        assert (general in part.events) == (name == "train")


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["train"], {"train": "train"}),
        (["train", "val=valid"], {"train": "train", "val": "valid"}),
        (["a=x/y b"], {"a": "x/y b"}),
    ],
)
def test_splits_may_have_another_word_in_paths(texts, words):
    assert splits.parse(texts) == words


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a/b"], "has 'a/b'; expected NAME or NAME=WORD"),
        ([""], "expected NAME"),
        (["a="], "expected NAME"),
        (["-x"], "expected NAME"),
        (["a", "a=b"], "has a twice"),
    ],
)
def test_names_that_are_no_part_of_a_file_name_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        splits.parse(texts)


def test_converted_splits_are_found_by_their_records(tmp_path):
    assert splits.converted(str(tmp_path / "nowhere")) == []
    for name in ("train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord"):
        (tmp_path / name).touch()
    for name in ("a-b-00000-of-00001.tfrecord.tmp", "val.json", "categories.json"):
        (tmp_path / name).touch()
    assert splits.converted(str(tmp_path)) == ["a-b", "train"]


def test_path_of_a_split_becomes_that_of_all_where_the_others_exist(tmp_path):
    for name in ("train", "val", "train2017", "validation"):
        (tmp_path / name).mkdir()
    root = str(tmp_path)
    assert splits.template(f"{root}/val", "val", ["train"]) == f"{root}/{{split}}"
    template = splits.template(f"{root}/val2017", "val", ["train"])
    assert template == f"{root}/{{split}}2017"
    (tmp_path / "my_val" / "train").mkdir(parents=True)
    template = splits.template(f"{root}/my_val/val", "val", ["train"])
    assert template == f"{root}/my_val/{{split}}"
    for path, others in (
        ("val", ["test"]),
        ("validation", ["train"]),
        ("x", ["train"]),
    ):
        assert splits.template(f"{root}/{path}", "val", others) == f"{root}/{path}"


def test_options_of_one_call_contain_the_earlier_splits_and_their_paths(tmp_path):
    for name in ("train", "valid"):
        (tmp_path / name).mkdir()
    paths = {"images": f"{tmp_path}/valid", "annotations": "a b/valid.json"}
    options = splits.in_one_call({"val": "valid"}, paths, earlier=["train", "val"])
    assert options == f"--split=train,val=valid '--images={tmp_path}/{{split}}'"
    options = splits.in_one_call({"val": "val"}, paths, earlier=["train"])
    assert options == "--split=train,val with {split} in --images, --annotations"


def of_yolo(**sources):
    """Returns a set of images; those with a label file have it as their source."""
    images = [
        annotations.AnnotatedImage(1, name, 9, 9, (), source)
        for name, source in sources.items()
    ]
    events = [
        annotations.ConversionEvent(annotations.BACKGROUND, name, image=name)
        for name, source in sources.items()
        if not source
    ]
    return annotations.AnnotatedSet(images, [], tuple(events))


def test_image_with_labels_in_another_split_is_no_background():
    sets = {
        "train": of_yolo(a="a.txt", b="", c=""),
        "val": of_yolo(a="", b="b.txt", c=""),
    }
    separated = splits.apart(sets, {"train": "images", "val": "images"})
    kept = {name: [i.file_name for i in s.images] for name, s in separated.items()}
    assert kept == {"train": ["a", "c"], "val": ["b"]}
    assert [[f.location for f in s.events] for s in separated.values()] == [["c"], []]
    assert splits.apart(sets, {"train": "images", "val": "others"}) == sets


def test_image_of_two_splits_is_an_event_of_the_later_one():
    sets = {"train": of_yolo(a="a.txt"), "val": of_yolo(a="a.txt", b="b.txt")}
    separated = splits.apart(sets, {"train": "images", "val": "images"})
    assert [len(s.images) for s in separated.values()] == [1, 2]
    assert separated["train"].events == ()
    (event,) = separated["val"].events
    assert event.kind == "images that another split has too"
    assert (event.location, event.detail) == ("a", "also in train")


def test_image_of_another_split_is_not_without_annotation():
    events = [
        annotations.ConversionEvent(annotations.UNANNOTATED, name, image=name)
        for name in "ab"
    ]
    some = annotations.AnnotatedSet(
        [], [], (*events, annotations.ConversionEvent("x", "a"))
    )
    sets = {"train": some, "val": of_yolo(a="a.txt")}
    separated = splits.apart(sets, {"train": "images", "val": "images"})["train"]
    assert separated.events == (events[1], annotations.ConversionEvent("x", "a"))


def test_splits_may_be_named_in_several_flags_and_none_like_the_classes():
    assert splits.parse(["train, val=valid", "test"]) == {
        "train": "train", "val": "valid", "test": "test",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"would write categories\.json"):
        splits.parse(["categories"])
    with pytest.raises(ValueError, match=r"would write a\.index\.json.* split a;"):
        splits.parse(["a.index"])
