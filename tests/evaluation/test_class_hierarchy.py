import json

import numpy as np
import pytest

import open_images_cases
from retinanet_tpu import errors
from retinanet_tpu.evaluation import class_hierarchy

CATEGORIES = open_images_cases.CATEGORIES


def read(folder, content, categories=CATEGORIES):
    path = folder / "hierarchy.json"
    path.write_text(json.dumps(content))
    return class_hierarchy.read(str(path), categories)


def node(label, *kinds):
    return {"LabelName": label, "Subcategory": list(kinds)}


def test_ancestors_of_all_places_are_joined_and_parts_have_none(tmp_path):
    is_ancestor = read(tmp_path, open_images_cases.HIERARCHY)
    found = {i: set(np.flatnonzero(row) + 1) for i, row in enumerate(is_ancestor, 1)}
    assert found == open_images_cases.ANCESTORS


def test_labels_may_be_the_names_of_categories(tmp_path):
    categories = [{"id": i, "name": name} for i, name in enumerate("abc")]
    # x is no category: its kinds belong to the class above it.
    content = node("a", node("x", node("c")), node("b"))
    is_ancestor = read(tmp_path, content, categories)
    assert is_ancestor.tolist() == [[True, False, False], [True, True, False],
                                    [True, False, True]]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (node("/m/1", node("/m/zz")), r"lacks 5 of the 6 .*/m/2.*no category: /m/zz"),
        (node("/m/entity"), r"lacks 6 of the 6 .*same dataset.*convert"),
        (node("/m/1", node("/m/2", node("/m/1"))), "/m/1 is below itself"),
        ([], r"contains \[\]; expected a hierarchy"),
        ({"Subcategory": []}, "expected a hierarchy"),
        ({"LabelName": "/m/1", "Subcategory": {}}, "expected a hierarchy"),
        (node("/m/1", "/m/2"), "contains '/m/2'; expected a hierarchy"),
    ],
)
def test_file_of_another_format_or_dataset_is_an_error(tmp_path, content, message):
    with pytest.raises(errors.UserError, match=message):
        read(tmp_path, content)
