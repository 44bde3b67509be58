"""Random data for the metric of Open Images, and its definition in plain loops."""

import numpy as np

from retinanet_tpu.evaluation import metric_engines

# Class 5 has two parents; 6 is no kind of another class.
HIERARCHY = {
    "LabelName": "/m/entity",
    "Subcategory": [
        {
            "LabelName": "/m/1",
            "Subcategory": [
                {"LabelName": "/m/2", "Subcategory": [{"LabelName": "/m/5"}]},
                {"LabelName": "/m/3"},
            ],
        },
        {
            "LabelName": "/m/4",
            "Subcategory": [{"LabelName": "/m/5"}],
            "Part": [{"LabelName": "/m/6"}],
        },
    ],
}
ANCESTORS = {1: {1}, 2: {1, 2}, 3: {1, 3}, 4: {4}, 5: {1, 2, 4, 5}, 6: {6}}
NAMES = ["Animal", "Cat", "Dog", "Pet", "Kitten", "Bowl"]
CATEGORIES = [
    {"id": i, "name": name, "machine_id": f"/m/{i}"}
    for i, name in enumerate(NAMES, start=1)
]


def random_content(rng, *, num_images=6, has_labels=True):
    """Returns the content of an annotation file; class 3 never has a box."""
    images, annotations = [], []
    for image_id in range(num_images):
        images.append({"id": image_id})
        if has_labels:
            images[-1]["pos_category_ids"] = rng.choice(7, 2, replace=False).tolist()
            images[-1]["neg_category_ids"] = rng.choice(7, 1).tolist()
            for key in ("pos_category_ids", "neg_category_ids"):
                images[-1][key] = [i for i in images[-1][key] if i]
        for _ in range(rng.integers(0, 8)):
            category_id = int(rng.choice([1, 2, 4, 5, 6]))
            is_group = int(rng.random() < 0.3)
            side = rng.integers(8, 16, 2) * (1 + is_group)
            box = [*rng.integers(0, 12, 2).tolist(), *side.tolist()]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id}
                | {"category_id": category_id, "bbox": box, "area": box[2] * box[3]}
                | {"iscrowd": is_group}
            )
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def random_detections(rng, *, num_images=6, num_scores=20, count=200):
    """Returns detections; few scores make ties, and some boxes have no area."""
    sides = rng.integers(6, 16, [count, 2]) * (rng.random([count, 1]) > 0.03)
    return metric_engines.DetectionColumns(
        image_ids=np.sort(rng.integers(0, num_images, count)),
        category_ids=rng.integers(1, 7, count),
        boxes_xywh=np.concatenate([rng.integers(0, 12, [count, 2]), sides], 1) * 1.0,
        scores=rng.integers(1, num_scores, count) / num_scores,
    )


def _overlap(a, b, *, over_union):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    whole = a[2] * a[3] + (b[2] * b[3] - shared if over_union else 0)
    return shared / whole


def _best(box, others, *, over_union):
    overlaps = [_overlap(box, other, over_union=over_union) for other in others]
    best = int(np.argmax(overlaps)) if overlaps else -1
    return best if overlaps and overlaps[best] >= 0.5 else None


def _verified(content, image, ancestors):
    if not any("pos_category_ids" in entry for entry in content["images"]):
        return set(ancestors)
    present = set(image["pos_category_ids"])
    present |= {
        a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]
    }
    verified = set().union(*(ancestors[i] for i in present))
    absent = set(image["neg_category_ids"])
    return verified | {kind for kind in ancestors if ancestors[kind] & absent}


def _of_image(image, label, content, found, *, ancestors, expands, weight):
    """Returns (score, weight) of the detections of a class that count, and boxes."""
    items = [
        a
        for a in content["annotations"]
        if a["image_id"] == image["id"] and label in ancestors[a["category_id"]]
    ]
    objects = [a["bbox"] for a in items if not a["iscrowd"]]
    groups = [a["bbox"] for a in items if a["iscrowd"]]
    rows = [
        i
        for i in range(len(found.scores))
        if found.image_ids[i] == image["id"] and found.boxes_xywh[i, 2] > 0
        if label
        in (ancestors if expands else {c: {c} for c in ancestors})[
            int(found.category_ids[i])
        ]
    ]
    rows.sort(key=lambda i: -found.scores[i])
    if label not in _verified(content, image, ancestors):
        rows = []
    judged, taken, full = [], set(), set()
    for i in rows:
        box = found.boxes_xywh[i]
        best = _best(box, objects, over_union=True)
        if best is not None and best not in taken:
            taken.add(best)
            judged.append((found.scores[i], 1))
            continue
        group = _best(box, groups, over_union=False)
        if group is None:
            judged.append((found.scores[i], 0))
        elif weight > 0 and group not in full:
            full.add(group)
            judged.append((found.scores[i], weight))
    return judged, len(objects) + weight * len(groups)


def naive_ap(content, found, label, **settings):
    """Returns the AP of a class, -1 without a box."""
    judged, num_boxes = [], 0
    for image in content["images"]:
        of_image, num = _of_image(image, label, content, found, **settings)
        judged += of_image
        num_boxes += num
    if not num_boxes:
        return -1
    judged.sort(key=lambda pair: -pair[0])
    points, correct, wrong = [(0.0, 1.0)], 0.0, 0
    for _, weight in judged:
        correct, wrong = correct + weight, wrong + (weight == 0)
        points.append((correct / num_boxes, correct / (correct + wrong)))
    return sum(
        (points[i][0] - points[i - 1][0]) * max(p for _, p in points[i:])
        for i in range(1, len(points))
    )
