"""Reads a hierarchy of classes in the format of Open Images.

A file contains nested objects: {"LabelName": "/m/0bl9f", "Subcategory": [...]}. Its
root, "Entity", is not a class. Subcategories are kinds of their parent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from retinanet_tpu import errors, json_files
from retinanet_tpu.evaluation import annotation_file

# The key of a category whose value is Open Images' name of the class, such as /m/01yrx.
MACHINE_ID = "machine_id"
_LABEL, _KINDS, _PARTS = "LabelName", "Subcategory", "Part"


def read(path: str, categories: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Reads the ancestors of each class.

    A node is the category with this machine id or name. Other nodes are skipped, and
    their descendants belong to the ancestors of the node. A node may occur several
    times and then has the ancestors of all its places. Each ancestor counts once; the
    expansion tool of the Object Detection API writes a box twice for an ancestor that
    is reached by two paths. A part, such as the wheel of a
    car, is not a kind of the whole and has no ancestors.

    Args:
      path: The JSON file, such as `bbox_labels_600_hierarchy.json`, local or remote.
      categories: COCO's dicts of id and name, and the machine id if there is one.
    Returns:
      bool [K, K]: Whether category j is category i or one of its ancestors, in the
      order of the categories.
    Raises:
      UserError: The file is not a hierarchy, lacks a category, or a class is its own
        ancestor.
    """
    index = {str(category["name"]): i for i, category in enumerate(categories)}
    index |= {
        str(category[MACHINE_ID]): i
        for i, category in enumerate(categories)
        if MACHINE_ID in category
    }
    is_ancestor = np.eye(len(categories), dtype=bool)
    found: set[int] = set()
    unknown: list[str] = []
    nodes: list[tuple[Any, tuple[int, ...]]] = [(json_files.read(path), ())]
    while nodes:
        node, ancestors = nodes.pop()
        label, kinds, parts = _parse_node(node, path)
        position = index.get(label)
        if position is None:
            unknown.append(label)
        else:
            if position in ancestors:
                raise errors.UserError(
                    f"{path}: {label} is below itself; remove one of the two nodes."
                )
            found.add(position)
            is_ancestor[position, list(ancestors)] = True
            ancestors = (*ancestors, position)
        nodes += [(kind, ancestors) for kind in kinds]
        nodes += [(part, ()) for part in parts]
    _check_found(found, unknown, categories, path)
    return is_ancestor


def _parse_node(node: Any, path: str) -> tuple[str, list[Any], list[Any]]:
    """Returns the label of a node, its subcategories and its parts."""
    if isinstance(node, dict) and isinstance(node.get(_LABEL), str):
        kinds, parts = node.get(_KINDS, []), node.get(_PARTS, [])
        if isinstance(kinds, list) and isinstance(parts, list):
            return node[_LABEL], kinds, parts
    raise errors.UserError(
        f"{path} contains {node!r:.60}; expected a hierarchy as in Open Images' "
        f'bbox_labels_600_hierarchy.json: {{"{_LABEL}": "/m/0bl9f", "{_KINDS}": [...]}}'
        "."
    )


def _check_found(
    found: set[int],
    unknown: list[str],
    categories: Sequence[Mapping[str, Any]],
    path: str,
) -> None:
    """Raises UserError if a category is not in the hierarchy."""
    missing = [category for i, category in enumerate(categories) if i not in found]
    if missing:
        names = [category.get(MACHINE_ID, category["name"]) for category in missing]
        raise errors.UserError(
            f"{path} lacks {len(missing)} of the {len(categories)} categories of the "
            f"annotations: {annotation_file.few(names)}. Its nodes that are no "
            f"category: {annotation_file.few(unknown) or 'none'}. Give the hierarchy "
            "of the same dataset. Its labels must be the names of the categories, or "
            f"their {MACHINE_ID}, which `retinanet-tpu convert --format=openimages` "
            "writes into the annotations; data converted by an older version must be "
            "converted again."
        )
    logging.info(
        "%s: %d categories; nodes that are no category: %d",
        path,
        len(categories),
        len(unknown),
    )
