import dataclasses
import functools
import pathlib
import re
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

import toy_data
from retinanet_tpu import errors, replicas, structures
from retinanet_tpu.boxes.anchors import Anchors
from retinanet_tpu.data import category_map
from retinanet_tpu.detections import decode, nms
from retinanet_tpu.estimator import spec, summaries, train_step
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.learning import aligned_matcher, losses, targets
from retinanet_tpu.task import model_fn, recipe

pytestmark = pytest.mark.long

ALIGNED = (
    "assign_targets.match_fn = @match_by_task_alignment",
    "detection_losses.class_loss_fn = @quality_focal_loss",
    "detection_losses.box_loss_fn = @giou_loss",
    "detection_losses.box_weight = 2.0",
)
# Every random change of training at once, and the recipe of recipe/modern.gin.
MODERN = (
    "ResNet.drop_rate = 0.3",
    "ResNet.activation_fn = @swish",
    "Augmentation.mosaic = 0.5",
    "Augmentation.mixup = 0.3",
    "Augmentation.random_ops = 2",
    "Augmentation.random_erasing = 0.5",
    "WeightUpdate.averaging_decay = 0.9998",
    "assign_targets.match_fn = @match_by_atss",
    *ALIGNED[1:],
)
# The settings of each representation of boxes.
CODERS = {
    "offsets": (),
    "distances": ("Anchors.box_coder = @SideDistances()", *ALIGNED[2:]),
    "distributions": (
        "Anchors.box_coder = @SideDistributions()",
        "SideDistributions.num_bins = 4",
        *ALIGNED[1:],
    ),
}
SMALL = (*toy_data.TWO_LEVELS, *toy_data.SGD, "MAX_STEPS = 2")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


class Trained(NamedTuple):
    variables: dict[str, np.ndarray]
    scalars: dict[str, float]
    path: str


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """Trains two steps; returns all variables, the loop's scalars and the path."""

    def train(*bindings, num_replicas=1, model_dir=None):
        reports = []

        def report_loop(self, step, num_steps, scalars, *, secs):
            reports.append({k: v for k, v in scalars.items() if k != "input-wait"})

        run = toy_data.make_run(
            model_dir or tmp_path_factory.mktemp("run"),
            data_dir,
            *SMALL,
            *bindings,
            num_replicas=num_replicas,
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(summaries.LoopWriter, "report_loop", report_loop)
            path = toy_data.train(run)
        return Trained(checkpoints.read(path), reports[0], path)

    return train


@pytest.fixture(scope="module")
def plain(trained):
    return trained()


@pytest.fixture(scope="module")
def network_and_params(data_dir):
    run = toy_data.make_run(None, data_dir, *SMALL)
    return run.make_network(), run.params | {"metric_fn": None}


def assert_same_training(got, expected, *, rtol):
    """Compares variables and scalars."""
    variables, scalars, _ = got
    assert variables.keys() == expected.variables.keys()
    for name, value in expected.variables.items():
        # A bias before batch norm has no gradient but rounding errors.
        close = {"rtol": rtol, "atol": rtol * 0.1, "err_msg": name}
        np.testing.assert_allclose(variables[name], value, **close)
    assert list(scalars) == list(expected.scalars)
    for name, value in expected.scalars.items():
        np.testing.assert_allclose(scalars[name], value, rtol=rtol, err_msg=name)


@pytest.mark.parametrize(
    "num_replicas",
    [2, pytest.param(8, marks=pytest.mark.slow)],  # Traces for a minute.
)
def test_equal_global_batches_give_equal_updates(trained, plain, num_replicas):
    assert_same_training(trained(num_replicas=num_replicas), plain, rtol=1e-4)


def test_the_compiled_train_step_equals_the_traced_one(trained, plain):
    compiled = trained("TPUConfig.jit_compile = True")
    assert_same_training(compiled, plain, rtol=1e-4)


def assert_trained(momentum, path):
    """Asserts that a weight has a gradient, unless batch norm cancels its effect.

    Batch norm subtracts the mean and thus the biases before it. The image is so small
    that P6 has one cell: there P5's bias cancels too.
    """
    idle = re.fullmatch(r"heads/\w+/conv\d/bias|fpn/output[3457]/bias", path)
    largest = np.abs(momentum).max()
    assert largest < 1e-9 if idle else largest > 0, f"{path}: {largest}"


@pytest.mark.slow
def test_assignment_by_predictions_is_the_same_compiled_and_on_two_replicas(trained):
    one = trained(*ALIGNED)
    assert all(np.isfinite(value).all() for value in one.variables.values())
    assert_same_training(trained(*ALIGNED, num_replicas=2), one, rtol=1e-4)
    compiled = trained(*ALIGNED, "TPUConfig.jit_compile = True")
    assert_same_training(compiled, one, rtol=1e-4)


@pytest.mark.slow
def test_random_changes_are_the_same_after_a_resume_and_on_two_replicas(trained):
    saves = (
        "RunConfig.save_checkpoints_steps = 1",
        "TPUConfig.iterations_per_loop = 1",
    )
    one = trained(*MODERN, *saves)
    assert_same_training(trained(*MODERN, *saves, num_replicas=2), one, rtol=1e-4)
    folder = pathlib.Path(one.path).parent
    for path in folder.glob("model.ckpt-2*"):
        path.unlink()
    assert checkpoints.steps(str(folder)) == [1]
    resumed = trained(*MODERN, *saves, model_dir=folder)
    for name, value in one.variables.items():
        np.testing.assert_array_equal(resumed.variables[name], value, err_msg=name)


def test_every_weight_and_every_statistic_is_trained(plain, network_and_params):
    variables = plain.variables
    for variable in network_and_params[0].variables:
        path = replicas.variable_path(variable)
        if variable.trainable:  # Some changes are too small for float32.
            assert_trained(variables[f"slots/{path}/momentum"], path)
        else:
            assert (variables[f"weights/{path}"] != variable.numpy()).any(), path


def test_frozen_layers_keep_their_initial_values(trained, plain):
    variables, *_ = trained(
        "FROZEN = ('backbone/stem', 'backbone/stage2')", f"WARM_START = '{plain.path}'"
    )
    before = checkpoints.read(plain.path, "averages/")
    frozen = [n for n in before if n.startswith(("backbone/stem", "backbone/stage2"))]
    assert {name.rpartition("/")[2] for name in frozen} == {
        "kernel",
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
    }
    for name in frozen:
        np.testing.assert_array_equal(variables[f"weights/{name}"], before[name])
        assert f"slots/{name}/momentum" not in variables
    others = [name for name in before if name not in frozen and "moving" not in name]
    for name in others:
        assert_trained(variables[f"slots/{name}/momentum"], name)


@pytest.mark.parametrize(
    "dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_half_precision_trains_like_float32(trained, plain, dtype):
    scale = ("WeightUpdate.loss_scale = @DynamicLossScale()",)
    variables, scalars, _ = trained(
        f"COMPUTE_DTYPE = '{dtype}'", *(scale if dtype == "float16" else ())
    )
    assert all(np.isfinite(value).all() for value in variables.values())
    for name in ("class-loss", "box-loss", "l2-regularization", "gradient-norm"):
        np.testing.assert_allclose(scalars[name], plain.scalars[name], rtol=0.1)


@pytest.mark.slow  # tests/learning/test_update.py tests it with a smaller network.
def test_an_overflow_skips_the_step_and_lowers_the_scale(trained, network_and_params):
    variables, scalars, _ = trained(
        "COMPUTE_DTYPE = 'float16'",
        "WeightUpdate.loss_scale = @DynamicLossScale()",
        "DynamicLossScale.initial = 1e12",
    )
    assert variables["loss_scale/scale"] == 0.25e12
    assert scalars["gradient-norm"] == 0 and np.isfinite(scalars["total-loss"])
    for weight in network_and_params[0].trainable_variables:
        path = replicas.variable_path(weight)
        np.testing.assert_array_equal(variables[f"weights/{path}"], weight.numpy())
        assert not variables[f"slots/{path}/momentum"].any()


def make_batch(num_images, *, seed=0):
    """Returns Features and Labels of noise with a box in each image."""
    rng = np.random.default_rng(seed)
    ids = np.arange(1, num_images + 1)
    corners = rng.uniform(0, 40, [num_images, 1, 2])
    boxes_yxyx = np.concatenate([corners, corners + rng.uniform(14, 24)], axis=-1)
    features = structures.Features(
        rng.integers(0, 256, [num_images, 64, 64, 3], np.uint8),
        ids,
        np.full([num_images, 2], 64, np.int32),
        np.ones([num_images, 2], np.float32),
    )
    labels = structures.Labels(
        boxes_yxyx.astype(np.float32),
        rng.integers(0, 2, [num_images, 1], np.int32),
        np.zeros([num_images, 1], bool),
        np.ones([num_images], np.int32),
    )
    return features, labels


def rows(batch, which):
    return [type(part)(*(x[which] for x in part)) for part in batch]


def training_losses(batch, network, params):
    """Returns training's scalars, images normalized by the moving statistics."""

    def still(images, is_training, seeds):
        return network(images, is_training=False)

    still.kernels = network.kernels
    result = model_fn.model_fn(*batch, spec.ModeKeys.TRAIN, params, still)
    return {name: float(value) for name, value in result.scalars.items()}


def num_positives(batch, params):
    assigned = params["recipe"].assign(batch[1])
    return float(losses.loss_normalizer(assigned.num_positives))


@pytest.mark.parametrize("settings", CODERS.values(), ids=list(CODERS))
def test_the_loss_of_a_batch_is_the_mean_of_its_halves(data_dir, settings):
    run = toy_data.make_run(None, data_dir, *SMALL, *settings)
    network, params = run.make_network(), run.params
    batch = make_batch(4)
    halves = [rows(batch, slice(0, 2)), rows(batch, slice(2, 4))]
    counts = [num_positives(half, params) for half in halves]
    assert min(counts) > 1 and sum(counts) == num_positives(batch, params)
    whole = training_losses(batch, network, params)
    parts = [training_losses(half, network, params) for half in halves]
    for name in whole.keys() - {"l2-regularization", "total-loss"}:
        total = sum(n * part[name] for n, part in zip(counts, parts, strict=True))
        np.testing.assert_allclose(whole[name] * sum(counts), total, rtol=1e-5)
    assert whole["total-loss"] == pytest.approx(
        whole["weighted-loss"] + whole["l2-regularization"]
    )


@pytest.mark.parametrize(
    "settings",
    [ALIGNED, *CODERS.values(), (*CODERS["distributions"], ALIGNED[0])],
    ids=["aligned", *CODERS, "aligned distributions"],
)
def test_the_loss_of_boxes_falls(data_dir, settings):
    run = toy_data.make_run(None, data_dir, *SMALL, *settings)
    network, batch = run.make_network(), make_batch(2)
    weights = [w for w in network.trainable_variables if "heads" in w.name]
    history = []
    for _ in range(3):
        with tf.GradientTape() as tape:
            predictions = network(batch[0].images, is_training=False)
            scalars = run.recipe.loss_scalars(predictions, *batch, network.kernels())
        history.append(scalars)
        gradients = tape.gradient(scalars["total-loss"], weights)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.assign_sub(0.01 * gradient)
    # The targets of the classes rise with the IoU of the boxes, so their loss may rise.
    boxes = [float(scalars["box-loss"]) for scalars in history]
    classes = [float(scalars["class-loss"]) for scalars in history]
    assert boxes[0] > boxes[1] > boxes[2] > 0
    assert len(set(classes)) == 3 and np.isfinite(classes).all()


@pytest.mark.parametrize("name", ["SideDistances", "SideDistributions"])
def test_a_loss_of_another_representation_is_an_error(data_dir, name):
    huber = toy_data.make_run(None, data_dir, *SMALL, f"Anchors.box_coder = @{name}()")
    with pytest.raises(errors.UserError, match=rf"@huber_loss.* is {name}\("):
        huber.recipe.check_losses()


@pytest.mark.parametrize("name", ["distances", "distributions"])
def test_a_checkpoint_of_another_representation_is_an_error(
    plain, data_dir, name, tmp_path
):
    run = toy_data.make_run(None, data_dir, *SMALL, *CODERS[name])
    message = rf"(?s)deltas/bias is \(36,\), not used.*{name}/bias is absent"
    with pytest.raises(errors.UserError, match=message):
        train_step.load(run.make_network(), plain.path)


def test_a_setting_that_is_no_representation_is_an_error(data_dir):
    with pytest.raises(errors.UserError, match=r"Anchors.box_coder.*@SideDistances\("):
        toy_data.parse(data_dir, "Anchors.box_coder = @NMS()")


def test_targets_are_assigned_by_the_predictions_of_the_batch(network_and_params):
    network, params = network_and_params
    batch = make_batch(2)
    seen = []

    def match_fn(labels, grid, predictions):
        seen.append(predictions)
        return aligned_matcher.match_by_task_alignment(labels, grid, predictions)

    assign_fn = functools.partial(targets.assign_targets, match_fn=match_fn)
    detector = dataclasses.replace(params["recipe"], assign_fn=assign_fn)
    detector.check_losses()
    assert seen == [None]
    training_losses(batch, network, params | {"recipe": detector})
    expected = network(batch[0].images, is_training=False)
    for got, value in zip(*map(tf.nest.flatten, (seen[1], expected)), strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-5)


def test_padding_images_carry_no_loss(network_and_params):
    network, params = network_and_params
    batch = make_batch(3)
    alone = training_losses(rows(batch, slice(0, 2)), network, params)
    batch[0].image_ids[2] = structures.PADDING_IMAGE
    padded = training_losses(batch, network, params)
    for name, value in alone.items():
        np.testing.assert_allclose(padded[name], value, rtol=1e-5, err_msg=name)


def test_a_batch_without_objects_has_a_finite_loss(network_and_params):
    network, params = network_and_params
    features, labels = make_batch(2)
    labels = labels._replace(num_boxes=np.zeros(2, np.int32))
    scalars = training_losses((features, labels), network, params)
    assert scalars["box-loss"] == 0 and np.isfinite(scalars["total-loss"])


@pytest.mark.parametrize(
    "mode",
    [spec.ModeKeys.PREDICT, pytest.param(spec.ModeKeys.EVAL, marks=pytest.mark.slow)],
)
def test_the_compiled_predict_step_equals_the_traced_one(network_and_params, mode):
    network, params = network_and_params
    params = params | {
        "recipe": dataclasses.replace(
            params["recipe"],
            categories=category_map.from_coco(toy_data.CATEGORIES),
            nms_fn=nms.NMS(score_threshold=0.0, max_detections=9),
        )
    }

    def step(features, labels):
        result = model_fn.model_fn(features, labels, mode, params, network)
        if mode == spec.ModeKeys.PREDICT:
            return result.predictions
        return {"loss": result.loss} | result.eval_metrics[1][0]._asdict()

    batch = tf.nest.map_structure(tf.constant, make_batch(2))
    expected = tf.function(step)(*batch)
    got = tf.function(step, jit_compile=True)(*batch)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-3)
    assert (expected["num_detections"].numpy() > 0).all()
    assert set(np.unique(got["classes"])) <= {0, 3, 7}


def test_detections_have_dataset_ids_and_original_pixels():
    # As in COCO, some indices (0 and 2) have no category.
    entries = (category_map.Category(1, 7, "a"), category_map.Category(3, 90, "b"))
    corners = np.arange(4, dtype=np.float32) * 16
    boxes_yxyx = np.stack([corners, corners, corners + 8, corners + 12], axis=-1)
    candidates = decode.Candidates(
        tf.constant(boxes_yxyx[None]),
        tf.constant([[0.9, 0.8, 0.7, 0.6]]),
        tf.constant([[0, 1, 2, 3]]),
    )
    detector = recipe.Recipe(
        num_classes=4,
        image_size=(128, 128),
        anchors=Anchors(),
        decode_fn=lambda *_, **__: candidates,
        nms_fn=nms.NMS(max_detections=5),
        categories=category_map.Categories(4, entries),
    )
    scales, sizes = tf.constant([[0.5, 0.25]]), tf.constant([[100, 200]])
    detections = detector.detect(None, scales, sizes)
    assert detections.num_detections.numpy().tolist() == [2]
    assert detections.classes.numpy().tolist() == [[7, 90, 0, 0, 0]]
    np.testing.assert_allclose(detections.scores, [[0.8, 0.6, 0, 0, 0]])
    expected = [
        [32, 64, 48, 112],
        [96, 192, 100, 200],
    ]  # The last is clipped.
    np.testing.assert_allclose(detections.boxes_yxyx[0, :2], expected)
