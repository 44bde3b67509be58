import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.data import examples, mixing, transforms
from retinanet_tpu.task import input_fn

OUTPUT = (40, 48)
MEAN = np.array(transforms.MEAN_COLOR)
NOTHING = [1.0] * mixing.NUM_UNIFORMS


def image(index, size, box=(8, 8, 24, 20)):
    """Returns a dark image of its own level of red whose box is white in green."""
    pixels = np.zeros([*size, 3], np.uint8)
    pixels[..., 0] = 50 * (index + 1)
    ymin, xmin, ymax, xmax = box
    pixels[ymin:ymax, xmin:xmax, 1] = 255
    return examples.LoadedImage(
        image=tf.constant(pixels),
        boxes_yxyx=tf.constant([box], tf.float32),
        classes=tf.constant([index]),
        is_crowd=tf.constant([index == 2]),
        image_id=tf.constant(10 + index, tf.int64),
        image_size=tf.constant([80, 96]),
        scales=tf.constant([0.5, 0.5]),
    )


SIZES = [(40, 48), (32, 48), (40, 30), (28, 44)]
GROUP = [image(index, size) for index, size in enumerate(SIZES)]


def expected_mosaic(center):
    """Returns the pixels of a mosaic at scale 1, one by one."""
    middle = np.round(np.array(center) * OUTPUT).astype(int)
    middle = np.clip(middle, 1, np.array(OUTPUT) - 1)
    pixels = np.tile(MEAN, [*OUTPUT, 1])
    for y in range(OUTPUT[0]):
        for x in range(OUTPUT[1]):
            index = 2 * int(y >= middle[0]) + int(x >= middle[1])
            height, width = SIZES[index]
            row = y - middle[0] + (0 if y >= middle[0] else height)
            column = x - middle[1] + (0 if x >= middle[1] else width)
            if 0 <= row < height and 0 <= column < width:
                pixels[y, x] = GROUP[index].image[row, column]
    return pixels


@pytest.mark.parametrize("center", [(0.5, 0.5), (0.25, 0.7), (0.99, 0.01)])
def test_a_mosaic_shows_each_image_from_the_center(center):
    mixed = mixing.mosaic(GROUP, OUTPUT, 1.0, center)
    np.testing.assert_array_equal(mixed.image, expected_mosaic(center))
    assert mixed.image_id == 10
    np.testing.assert_array_equal(mixed.classes, [0, 1, 2, 3])
    np.testing.assert_array_equal(mixed.is_crowd, [False, False, True, False])


@pytest.mark.parametrize("seed", range(8))
def test_boxes_follow_the_pixels_into_a_mosaic(seed):
    scale, *center = np.random.default_rng(seed).uniform(0.3, 0.9, 3).astype(np.float32)
    mixed = mixing.mosaic(GROUP, OUTPUT, scale, center)
    pixels = mixed.image.numpy().astype(int)
    middle = np.round(np.array(center) * OUTPUT)
    for index, box in enumerate(mixed.boxes_yxyx.numpy()):
        is_here = (np.arange(OUTPUT[0])[:, None] >= middle[0]) == (index >= 2)
        is_here = is_here & ((np.arange(OUTPUT[1]) >= middle[1]) == (index % 2 == 1))
        is_object = (pixels[..., 1] > 127) & (pixels[..., 2] < 60) & is_here
        if (box[2:] == box[:2]).any():  # Too little is visible.
            assert is_object.sum() < 0.25 * 16 * 12 * scale**2
            continue
        rows, columns = np.nonzero(is_object)
        seen = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
        np.testing.assert_allclose(box, seen, atol=1.01)


@pytest.mark.parametrize(
    ("center", "is_kept"), [((0.5, 0.5), True), ((0.75, 0.5), False)]
)
def test_a_box_of_which_little_is_visible_is_dropped(center, is_kept):
    # The box of the last image begins 8 rows below the center and has 16.
    mixed = mixing.mosaic(GROUP, OUTPUT, 1.0, center)
    _, labels = examples.pad(mixed, examples.OutputSpec(OUTPUT))
    assert (3 in labels.classes[: int(labels.num_boxes)].numpy()) == is_kept


def test_mixup_is_the_mean_of_two_padded_images_with_all_boxes():
    mixed = mixing.mixup(GROUP[1], GROUP[3], OUTPUT)
    padded = [
        transforms.pad_to_size(GROUP[i].image, OUTPUT).numpy().astype(int)
        for i in (1, 3)
    ]
    np.testing.assert_array_equal(mixed.image, (padded[0] + padded[1]) // 2)
    np.testing.assert_array_equal(mixed.classes, [1, 3])
    np.testing.assert_array_equal(
        mixed.boxes_yxyx, np.concatenate([GROUP[i].boxes_yxyx for i in (1, 3)])
    )
    assert mixed.image_id == 11


def test_the_random_numbers_choose():
    both = examples.Augmentation(mosaic=0.5, mixup=0.5)
    plain = mixing.mix(GROUP, OUTPUT, both, tf.constant(NOTHING))
    np.testing.assert_array_equal(plain.image, GROUP[0].image)
    mosaic = mixing.mix(GROUP, OUTPUT, both, tf.constant([0.1, 0.5, 0.5, 0.5, 0.9]))
    np.testing.assert_array_equal(
        mosaic.image, mixing.mosaic(GROUP, OUTPUT, 0.75, (0.5, 0.5)).image
    )
    blended = mixing.mix(GROUP, OUTPUT, both, tf.constant([0.1, 0.5, 0.5, 0.5, 0.1]))
    np.testing.assert_array_equal(
        blended.image, mixing.mixup(mosaic, GROUP[1], OUTPUT).image
    )
    assert len(blended.classes) == 5
    never = examples.Augmentation()
    assert not never.mixes and both.mixes
    single = mixing.mix(GROUP, OUTPUT, never, tf.zeros([mixing.NUM_UNIFORMS]))
    np.testing.assert_array_equal(single.image, GROUP[0].image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mosaic": 1.5}, r"Augmentation\.mosaic is 1\.5; it is a probability"),
        ({"random_erasing": 2.0}, r"random_erasing is 2\.0; it is a probability"),
        ({"mixup": -0.1}, r"Augmentation\.mixup is -0\.1; it is a probability"),
        ({"mosaic_scale": (0.0, 1.0)}, r"Augmentation\.mosaic_scale is \(0\.0, 1\.0\)"),
        ({"mosaic": 1.0, "last_mixed_step": 5}, "last_mixed_step does not work with"),
    ],
)
def test_an_invalid_setting_is_an_error(settings, message):
    with pytest.raises(errors.UserError, match=message):
        input_fn.Data(
            "data",
            augmentation=examples.Augmentation(**settings),
            service_address="grpc://localhost:5000",
        )
