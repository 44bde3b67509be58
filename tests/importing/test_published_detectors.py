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
    """Imports a file; returns the detections of each image."""
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
        yield recipe.detect(predictions, tf.ones([1, 2]), tf.constant([size]))


def assert_same(ours, theirs, i):
    """Asserts that boxes, scores and classes agree one to one."""
    count = len(theirs[f"scores_{i}"])
    assert int(ours.num_detections[0]) == count >= 50
    scores = ours.scores[0, :count].numpy()
    np.testing.assert_allclose(scores, theirs[f"scores_{i}"], atol=1e-4)
    rows = np.concatenate(
        [
            ours.boxes_yxyx[0, :count].numpy()[:, [1, 0, 3, 2]],
            scores[:, None],
            ours.classes[0, :count].numpy()[:, None],
        ],
        axis=1,
    )
    # Detections of nearly equal scores may have another order.
    free = list(range(count))
    for box, score, label in zip(
        *(theirs[f"{key}_{i}"] for key in ("boxes", "scores", "labels")), strict=True
    ):
        row = [*box, score, label]
        nearest = min(free, key=lambda j: np.abs(rows[j] - row).max())
        free.remove(nearest)
        # Pixels; a box of 500 px has an error of 1e-4 in float32.
        np.testing.assert_allclose(rows[nearest], row, atol=5e-3, rtol=0)


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
