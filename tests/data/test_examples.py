import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from retinanet_tpu.data import (
    annotations,
    category_map,
    examples,
    tf_example,
    transforms,
)

CATEGORIES = category_map.from_coco(
    [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]
)
NAMES = {3: "cat", 9: "dog", 4: "cow"}
OUTPUT = examples.OutputSpec((96, 128), max_boxes=4)
TARGET = (60, 30, 50, 40)  # x, y, width, height of the bright rectangle


def record(boxes=(TARGET,), *, category_id=9, image_format="PNG", crowds=()):
    pixels = np.full([120, 200, 3], 40, np.uint8)
    x, y, width, height = TARGET
    pixels[y : y + height, x : x + width] = 240
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, image_format, quality=95)
    objects = tuple(
        annotations.AnnotatedObject(
            i + 1, category_id, tuple(map(float, box)), 1.0, i in crowds
        )
        for i, box in enumerate(boxes)
    )
    image = annotations.AnnotatedImage(7, "a", 120, 200, objects)
    return tf.constant(
        tf_example.encode(
            image, stream.getvalue(), image_format=image_format.lower(), names=NAMES
        )
    )


@tf.function
def load(serialized, uniforms, *, jitter=(0.5, 2.0), flip=True, more=()):
    augmentation = examples.Augmentation(jitter, flip, *more)
    return examples.load_example(serialized, CATEGORIES, OUTPUT, augmentation, uniforms)


def bright_box(image, resized):
    """Returns the bounding box (yxyx) of the bright pixels."""
    height, width = resized
    bright = image[:height, :width, 0] > 140
    rows, columns = np.where(bright.any(1))[0], np.where(bright.any(0))[0]
    return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


@pytest.mark.long
@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_boxes_fit_their_objects_after_jitter_crop_and_flip(image_format):
    serialized, rng = record(image_format=image_format), np.random.default_rng(1)
    num_kept = num_cut = 0
    for _ in range(60):
        uniforms = tf.constant(rng.random(examples.NUM_UNIFORMS), tf.float32)
        features, labels = load(serialized, uniforms, more=(True,))
        size = np.array([120, 200]) * features.scales.numpy()
        resized = np.minimum(np.round(size).astype(int), OUTPUT.image_size)
        if labels.num_boxes == 0:
            continue
        box = labels.boxes_yxyx[0].numpy()
        num_kept += 1
        num_cut += bool((box[2:] - box[:2] < [39, 49] * features.scales.numpy()).any())
        sides = box[2:] - box[:2]
        if (sides > 3).all():  # bilinear resizing blurs narrower ones
            visible = bright_box(features.images.numpy(), resized)
            np.testing.assert_allclose(visible, box, atol=1.01)
    assert num_kept > 25 and num_cut > 2


def test_a_large_scale_jitter_keeps_exactly_the_boxes_that_remain_visible():
    output = examples.OutputSpec((96, 128), max_boxes=32)
    rng = np.random.default_rng(3)
    sides = 2 ** rng.uniform(1, 6, [24, 2])  # From 2 to 64 px.
    starts = rng.uniform(0, [120, 200] - sides)
    boxes_xywh = np.concatenate([starts[:, ::-1], sides[:, ::-1]], axis=1)
    augmentation = examples.Augmentation((0.1, 2.0), horizontal_flip=False)
    load = tf.function(
        lambda s, u: examples.load_example(s, CATEGORIES, output, augmentation, u)
    )
    serialized, num_small, num_outside = record(boxes_xywh), 0, 0
    for _ in range(40):
        uniforms = tf.constant(rng.random(examples.NUM_UNIFORMS), tf.float32)
        features, labels = load(serialized, uniforms)
        window = transforms.crop_window(
            tf.constant([120, 200]),
            output.image_size,
            scale=0.1 + 1.9 * uniforms[0],
            position=uniforms[1:3],
        )
        start, size, resized = (x.numpy().astype(float) for x in window[:3])
        scale = resized / size
        np.testing.assert_allclose(features.scales, scale, rtol=1e-6)
        low = (starts - start) * scale
        corners = np.concatenate([low, low + sides * scale], axis=1)
        clipped = np.clip(corners, 0, np.tile(resized, 2))
        visible = clipped[:, 2:] - clipped[:, :2]
        is_kept = (visible >= 1).all(1)
        num_small += (sides * scale < 1).any(1).sum()
        num_outside += (visible <= 0).any(1).sum()
        assert labels.num_boxes == is_kept.sum()
        kept = labels.boxes_yxyx[: is_kept.sum()]
        np.testing.assert_allclose(kept, clipped[is_kept], atol=1e-3)
    assert num_small > 20 and num_outside > 100


def test_the_box_fits_its_object_in_a_stretched_image():
    output = examples.OutputSpec((96, 96), max_boxes=4, keep_aspect_ratio=False)
    features, labels = examples.load_example(record(), CATEGORIES, output)
    np.testing.assert_allclose(features.scales, [96 / 120, 96 / 200], rtol=1e-6)
    box = labels.boxes_yxyx[0].numpy()
    x, y, width, height = TARGET
    corners = np.array([y, x, y + height, x + width])
    np.testing.assert_allclose(box, corners * np.tile(features.scales, 2), rtol=1e-6)
    visible = bright_box(features.images.numpy(), (96, 96))
    np.testing.assert_allclose(visible, box, atol=1.01)


def test_flip_is_independent_of_the_scale():
    serialized = record()
    scales = []
    for flip in (0.1, 0.9):
        features, labels = load(serialized, tf.constant([0.1, 0.5, 0.5, flip]))
        scales.append(features.scales.numpy())
        left = labels.boxes_yxyx[0, 1].numpy()
        width = 200 * scales[-1][1]
        expected = (
            width - (60 + 50) * scales[-1][1] if flip < 0.5 else 60 * scales[-1][1]
        )
        np.testing.assert_allclose(left, expected, atol=0.5)
    np.testing.assert_array_equal(*scales)


def test_each_flip_has_its_own_random_number():
    serialized, corners = record(), set()
    for left_right, top_down in np.ndindex(2, 2):
        uniforms = tf.constant([0.5, 0, 0, left_right, top_down, 0, 0, 0], tf.float32)
        _, labels = load(serialized, uniforms, jitter=(1.0, 1.0), more=(True,))
        corners.add(tuple(labels.boxes_yxyx[0, :2].numpy().round(3)))
    assert len(corners) == 4


def test_color_jitter_has_its_own_random_numbers_and_keeps_the_boxes():
    serialized = record()
    middle = [0.5, 0, 0, 0.9, 0.9, 0.5, 0.5, 0.5]
    features, labels = load(serialized, tf.constant(middle), more=(False, 0.4))
    plain, _ = load(serialized, tf.constant(middle))
    np.testing.assert_array_equal(features.images, plain.images)
    bright = tf.constant([*middle[:5], 1.0, 0.5, 0.5])
    brighter, moved = load(serialized, bright, more=(False, 0.4))
    np.testing.assert_array_equal(moved.boxes_yxyx, labels.boxes_yxyx)
    assert features.images[0, 0, 0] == 40 and brighter.images[0, 0, 0] == 56


def test_evaluation_uses_the_whole_image_and_returns_its_scales():
    features, labels = examples.load_example(record(), CATEGORIES, OUTPUT)
    np.testing.assert_array_equal(features.image_sizes, [120, 200])
    assert features.image_ids.numpy() == 7
    np.testing.assert_allclose(features.scales, [77 / 120, 128 / 200])
    np.testing.assert_allclose(
        labels.boxes_yxyx[0], [30 * 77 / 120, 38.4, 70 * 77 / 120, 70.4], rtol=1e-5
    )
    assert (features.images[77:].numpy() == transforms.MEAN_COLOR).all()


def test_labels_are_padded_and_category_ids_become_indexes():
    boxes = [TARGET, (0, 0, 20, 20), (5, 5, 0.5, 40)]
    _, labels = examples.load_example(record(boxes, crowds=[1]), CATEGORIES, OUTPUT)
    assert labels.num_boxes.numpy() == 2  # the third is narrower than a pixel
    np.testing.assert_array_equal(labels.classes, [1, 1, 0, 0])
    np.testing.assert_array_equal(labels.is_crowd, [False, True, False, False])
    np.testing.assert_array_equal(labels.boxes_yxyx[2:], np.zeros([2, 4]))


def test_the_largest_of_too_many_boxes_are_kept():
    boxes = [(0, 0, side, side) for side in (10, 60, 20, 50, 40, 30)]
    _, labels = examples.load_example(record(boxes), CATEGORIES, OUTPUT)
    assert labels.num_boxes.numpy() == 4
    widths = labels.boxes_yxyx[:, 3].numpy() / 0.64
    np.testing.assert_allclose(widths, [60, 50, 40, 30], rtol=1e-5)


def test_an_image_without_boxes_is_an_example():
    features, labels = load(record(()), tf.constant([0.9, 0.1, 0.1, 0.1]))
    assert features.images.shape == (96, 128, 3)
    assert labels.num_boxes.numpy() == 0
    assert not labels.boxes_yxyx.numpy().any()


def test_an_unknown_category_is_an_error_with_the_image_and_the_file():
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"(?s)not in categories\.json.*4.*of image.*7",
    ):
        examples.load_example(record(category_id=4), CATEGORIES, OUTPUT)


def test_every_category_id_is_mapped_to_its_index():
    many = [{"id": i, "name": str(i)} for i in (40, 2, 17, 90)]
    sparse = category_map.from_coco(many, index_by_id=True)
    for category in sparse.categories:
        serialized = tf_example.encode(
            annotations.AnnotatedImage(
                1, "a", 120, 200,
                (annotations.AnnotatedObject(1, category.id, (0, 0, 9, 9), 1, False),),
            ),
            tf_example.parse(record()).encoded.numpy(),
            image_format="png",
            names={category.id: category.name},
        )  # fmt: skip
        _, labels = examples.load_example(tf.constant(serialized), sparse, OUTPUT)
        assert labels.classes[0].numpy() == category.id


def test_an_augmentation_without_random_numbers_is_an_error():
    with pytest.raises(ValueError, match="uniforms"):
        examples.load_example(record(), CATEGORIES, OUTPUT, examples.Augmentation())


def test_an_example_runs_fewer_than_300_operations():
    # At 640 px a host loads an image in about 4 ms, of which an operation takes about
    # 2 us. Branches that are not taken count, because the executor visits them too.
    graph = load.get_concrete_function(
        tf.TensorSpec([], tf.string), tf.TensorSpec([examples.NUM_UNIFORMS], tf.float32)
    ).graph.as_graph_def()
    operations = list(graph.node)
    for function in graph.library.function:
        operations += function.node_def
    num_operations = sum(node.op != "Const" for node in operations)
    assert num_operations < 300, num_operations
