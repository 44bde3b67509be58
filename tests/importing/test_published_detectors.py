"""Imported detectors against the libraries that they are from, on random weights."""

import dataclasses
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import commands
import model_garden_detectors
import torch_detectors
from retinanet_tpu import import_detector
from retinanet_tpu.boxes import box_ops
from retinanet_tpu.data import category_map
from retinanet_tpu.estimator import gin_files, train_step
from retinanet_tpu.task import configurables

pytestmark = pytest.mark.long


def run_helper(helper, name, images, weights, folder):
    """Runs a helper of the library; returns its detections."""
    np.savez(folder / "images.npz", *images)
    paths = folder / "images.npz", weights, folder / "detections.npz"
    command = [sys.executable, helper.__file__, name, *paths]
    subprocess.run(list(map(str, command)), check=True)
    return np.load(folder / "detections.npz")


def import_and_detect(weights, images, folder):
    """Imports a file; yields the detections and all candidates of each image."""
    model_dir = folder / "run"
    commands.run(import_detector.main, model_dir, None, checkpoint=str(weights))
    gin_files.parse(
        [], [], known=configurables.CONFIGURABLES, saved=f"{model_dir}/config.gin"
    )
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    network = run.make_network()
    train_step.load(network, f"{model_dir}/model.ckpt-0")
    categories = category_map.read(f"{model_dir}/categories.json")
    for image in images:
        size = image.shape[:2]
        recipe = dataclasses.replace(run.recipe, image_size=size, categories=categories)
        predictions = network(image[None], is_training=False)
        detections = recipe.detect(predictions, tf.ones([1, 2]), tf.constant([size]))
        candidates = recipe.decode_fn(
            predictions, recipe.anchors, size, num_classes=recipe.num_classes
        )
        yield rows_of(detections, size), rows_of(candidates, size)


def rows_of(detections, size):
    """Returns [N, 6]: boxes (xyxy, px), scores and classes of one image."""
    boxes = box_ops.clip(detections.boxes_yxyx[0], size)
    rows = tf.concat(
        [
            box_ops.swap_xy(boxes),
            detections.scores[0, :, None],
            tf.cast(detections.classes[0, :, None], tf.float32),
        ],
        axis=1,
    )
    return rows.numpy()


def assert_same(ours, theirs, i):
    """Asserts that boxes, scores and classes agree one to one.

    Where several candidates have equal scores, NMS may keep another one. So up to 5 %
    of the detections need only be among the candidates.
    """
    detections, candidates = ours
    expected = np.column_stack(
        [theirs[f"{key}_{i}"] for key in ("boxes", "scores", "labels")]
    )
    count = len(expected)
    assert count >= 50
    np.testing.assert_allclose(detections[:count, 4], expected[:, 4], atol=1e-4)
    assert not detections[count:, 4].any()
    # Detections of nearly equal scores may have another order.
    free = list(detections[:count])
    num_others = 0
    for row in expected:
        errors = [np.abs(other - row).max() for other in free]
        # Pixels; a box of 500 px has an error of 1e-4 in float32.
        if min(errors) < 5e-3:
            del free[int(np.argmin(errors))]
        else:
            num_others += 1
            assert np.abs(candidates - row).max(axis=1).min() < 5e-3, row
    assert num_others <= 0.05 * count


def draw_images(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.mark.parametrize("version", ["", "_v2"])
def test_torchvision_has_the_same_detections(version, tmp_path):
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    # The last sizes are no multiples of P7's stride of 128.
    images = draw_images((256, 384), (224, 352), (288, 160))
    weights = tmp_path / "detector.pth"
    name = f"retinanet_resnet50_fpn{version}"
    theirs = run_helper(torch_detectors, name, images, weights, tmp_path)
    for i, ours in enumerate(import_and_detect(weights, images, tmp_path)):
        assert_same(ours, theirs, i)


@pytest.mark.parametrize("name", ["18", "50", "spinenet49S"])
def test_model_garden_has_the_same_detections(name, tmp_path):
    if not importlib.util.find_spec("official"):
        pytest.skip("tf-models-official is not installed")
    # Model Garden's SpineNet is made for images of one size.
    sizes = [(128, 256)] if name.startswith("spinenet") else [(128, 256), (256, 128)]
    images = draw_images(*sizes)
    weights = tmp_path / "ckpt-9"
    theirs = run_helper(model_garden_detectors, name, images, weights, tmp_path)
    for i, ours in enumerate(import_and_detect(weights, images, tmp_path)):
        assert_same(ours, theirs, i)
