import importlib
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

import tool_processes

pytestmark = pytest.mark.long

TOOL = pathlib.Path(tool_processes.path("tools/benchmarks/latency.py"))
QUICK = ("--rounds=2", "--measure_secs=0", "--batch_size", "1", "4", "--size", "24x32")


class Adder(tf.Module):
    """A module with signatures like a detector's and a fixed number of objects."""

    def __init__(self, objects):
        super().__init__()
        self.objects = tf.Variable(objects)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)])
    def images(self, images):
        sums = tf.reduce_sum(tf.cast(images, tf.float32), [1, 2, 3])
        counts = tf.fill(tf.shape(images)[:1], self.objects)
        return {"sums": sums, "valid_detections": counts}

    @tf.function(input_signature=[tf.TensorSpec([2, 32, 32, 3], tf.float32)])
    def pairs(self, images):
        return {"sums": tf.reduce_sum(images, [1, 2, 3])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32)])
    def numbers(self, numbers):
        return {"sums": numbers + 1.0}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    directory, module = tmp_path_factory.mktemp("artifacts"), Adder(7)
    pairs = module.pairs.get_concrete_function()
    tf.saved_model.save(
        module,
        str(directory / "adder"),
        {"images": module.images, "pairs": pairs, "numbers": module.numbers},
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([pairs], module)
    (directory / "adder.tflite").write_bytes(converter.convert())
    return directory


@pytest.fixture
def imported(monkeypatch):
    def load(name):
        monkeypatch.syspath_prepend(str(TOOL.parent))
        return importlib.import_module(name)

    return load


def run(*arguments):
    return tool_processes.run_python(TOOL, *arguments)


def turns(*secs, objects=None):
    return [
        {"images": 8, "secs": s, "cpu_secs": 2 * s, "objects": objects} for s in secs
    ]


@pytest.mark.slow
def test_artifacts_of_all_kinds_are_measured_in_turn(artifacts):
    process = run(
        f"any={artifacts / 'adder'}",
        f"two={artifacts / 'adder'}@pairs",
        f"lite={artifacts / 'adder.tflite'}",
        *QUICK[:3],
        "4",
        *QUICK[-2:],
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert "2 threads, 2 rounds" in lines[0]
    assert "signature images" in lines[1] and "signature pairs" in lines[2]
    rows = [line.split() for line in lines[-3:]]
    assert [row[:5] for row in rows] == [
        ["4", "of", "24", "x", "32"],
    ] * 3
    assert [row[5] for row in rows] == ["any", "two", "lite"]
    # The first is compared with itself; it detects seven objects in each image.
    cells = re.split(" {2,}", lines[-3].strip())
    assert cells[-3:] == ["7.0", "1.00 (1.00 to 1.00)", "1.00 (1.00 to 1.00)"]
    order = [
        line.split(" | ")[2] for line in process.stderr.splitlines() if " | " in line
    ]
    assert order == ["any", "two", "lite", "two", "lite", "any"]


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_an_error(artifacts):
    process = run(f"two={artifacts / 'adder'}@pairs", *QUICK)
    assert process.returncode == 1
    assert (
        "error: two: A batch of 1 images of [24, 32] px does not fit" in process.stderr
    )


@pytest.mark.slow  # A process for each.
@pytest.mark.parametrize(
    ("artifact", "message"),
    [
        ("nowhere", "'nowhere' is neither NAME=PATH nor NAME=PATH@SIGNATURE"),
        ("a={}/absent", "absent, the path of 'a', does not exist"),
        ("a={}", "neither a SavedModel (a directory with a saved_model.pb)"),
        ("a={}/adder@boxes", "has no signature 'boxes'; select one of ['images', 'num"),
        ("a={}/adder@numbers", "adder is [None]; expected a batch of images"),
    ],
)
def test_an_invalid_artifact_is_an_error(artifacts, artifact, message):
    process = run(artifact.format(artifacts), *QUICK)
    assert process.returncode == 1
    assert message in process.stderr and "Traceback" not in process.stderr


def test_a_size_is_two_numbers():
    process = run("a=b", "--size", "640")
    assert process.returncode == 2
    assert "'640' is not HEIGHTxWIDTH in px, such as 480x640" in process.stderr


def test_ratios_compare_the_same_round(imported):
    tool = imported("latency")
    measured = {"first": turns(2.0, 4.0, objects=3.0), "other": turns(1.0, 3.0)}
    case = tool.Case((480, 640), 8)
    lines = tool.table({case: measured}, is_markdown=True).splitlines()
    assert lines[3] == (
        "| 8 of 480 x 640 | other | 2,000 (1,000 to 3,000) | 250 | "
        "500 (250 to 750) | - | 0.62 (0.50 to 0.75) | 0.62 (0.50 to 0.75) |"
    )
    assert lines[2].split(" | ")[5] == "3.0"
    lengths = {len(line) for line in tool.table({case: measured}).splitlines()}
    assert len(lengths) == 1


def test_batches_are_split_and_padded_to_small_inputs(imported):
    worker = imported("timed_detector")
    images = worker.make_images(4, (24, 32))
    detector = worker.Detector(None, (2, 32, 40, 3), np.float32, "")
    calls = worker.make_feeds(detector, images)
    assert [(call.shape, call.dtype) for call in calls] == [
        ((2, 32, 40, 3), np.float32)
    ] * 2
    np.testing.assert_array_equal(np.concatenate(calls)[:, :24, :32], images)
    assert not calls[1][:, 24:].any() and not calls[1][:, :, 32:].any()


def test_images_do_not_depend_on_the_batch_size(imported):
    worker = imported("timed_detector")
    few, many = worker.make_images(2, (32, 48)), worker.make_images(3, (32, 48))
    np.testing.assert_array_equal(many[:2], few)
    assert not np.array_equal(few[0], few[1])


def test_shifted_logits_have_the_requested_number_of_likely_pairs(imported):
    shift_class_logits = imported("shift_class_logits")
    rng, is_class = np.random.default_rng(0), np.array([False, True, True, True])
    places, kernel = rng.normal(size=(5, 400, 6)), rng.normal(size=(6, 2 * 4))
    kernel, bias = shift_class_logits.shift(
        kernel * 1e-5, places @ kernel * 1e-5, is_class, num_likely=30
    )
    logits = places @ kernel + bias
    np.testing.assert_allclose(logits.std((0, 1)), 1, rtol=1e-5)
    scores = 1 / (1 + np.exp(-logits[..., np.tile(is_class, 2)]))
    assert abs((scores > shift_class_logits.THRESHOLD).sum() - 5 * 30) <= 1
