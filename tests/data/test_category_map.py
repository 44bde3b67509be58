import json

import numpy as np
import pytest

from retinanet_tpu.data import category_map

COCO = [{"id": 7, "name": "dog"}, {"id": 2, "name": "cat"}]


def test_indexes_are_contiguous_in_the_order_of_ids():
    read = category_map.from_coco(COCO)
    assert read.num_classes == 2
    np.testing.assert_array_equal(read.ids, [2, 7])
    assert read.names == ["cat", "dog"]
    assert read.id_to_index == {2: 0, 7: 1}


def test_index_by_id_leaves_gaps():
    read = category_map.from_coco(COCO, index_by_id=True)
    assert read.num_classes == 8
    np.testing.assert_array_equal(read.ids, [-1, -1, 2, -1, -1, -1, -1, 7])
    assert read.names[2] == "cat" and read.names[3] == ""


@pytest.mark.parametrize("index_by_id", [False, True])
def test_a_written_file_reads_back_equal(index_by_id):
    written = category_map.from_coco(COCO, index_by_id=index_by_id)
    path = f"ram://categories/{index_by_id}.json"
    category_map.write(written, path)
    assert category_map.read(path) == written


def test_a_missing_file_is_an_error_with_the_command_that_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="retinanet-tpu convert"):
        category_map.read(str(tmp_path / "categories.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"num_classes": 1}', "KeyError: 'categories'"),
        ('{"num_classes": 1, "categories": [{"index": 0, "id": 1}]}', "'name'"),
        (
            '{"num_classes": 1, "categories": [{"index": 1, "id": 1, "name": "a"}]}',
            "0..0",
        ),
        (
            '{"num_classes": 2, "categories": [{"index": 0, "id": 1, "name": "a"},'
            ' {"index": 1, "id": 1, "name": "b"}]}',
            "two categories of id 1",
        ),
        (
            '{"num_classes": 2, "categories": [{"index": 0, "id": 1, "name": "a"},'
            ' {"index": 1, "id": 2, "name": "a"}]}',
            "two categories of name 'a'",
        ),
        (
            '{"num_classes": 2, "categories": [{"index": 0, "id": 1, "name": "a"},'
            ' {"index": 0, "id": 2, "name": "b"}]}',
            "two categories of index 0",
        ),
        *(
            (f'{{"num_classes": 1, "categories": [{{"index": 0, {field}}}]}}', message)
            for field, message in (
                ('"id": -1, "name": "a"', "gives 'a' the id -1; ids are 0..2147483647"),
                ('"id": 2147483648, "name": "a"', "the id 2147483648; ids are"),
                ('"id": 1.5, "name": "a"', "got ValueError: id 1.5"),
                ('"id": "x", "name": "a"', "got ValueError: id 'x'"),
                ('"id": true, "name": "a"', "got ValueError: id True"),
                ('"id": 1, "name": null', "got ValueError: name None"),
            )
        ),
    ],
)
def test_an_invalid_file_is_an_error_with_the_reason(tmp_path, content, message):
    path = tmp_path / "categories.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        category_map.read(str(path))


def test_no_categories_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        category_map.from_coco([])


def test_a_wrong_num_classes_is_an_error_with_both_numbers_and_the_macro():
    read = category_map.from_coco(COCO)
    read.check_num_classes(2)
    with pytest.raises(ValueError, match=r"91 classes.*has 2; set NUM_CLASSES = 2"):
        read.check_num_classes(91)


def test_numbers_may_be_written_as_text_and_names_as_numbers(tmp_path):
    path = tmp_path / "categories.json"
    category = {"index": "0", "id": 7.0, "name": 7}
    path.write_text(json.dumps({"num_classes": "1", "categories": [category]}))
    expected = category_map.Category(0, 7, "7")
    assert category_map.read(str(path)).categories == (expected,)


@pytest.mark.parametrize("category_id", [-1, -7, 2**31])
def test_ids_beyond_int32_or_negative_are_an_error(category_id):
    with pytest.raises(ValueError, match=f"'cat' the id {category_id}; .*Renumber it"):
        category_map.from_coco([{"id": category_id, "name": "cat"}])
