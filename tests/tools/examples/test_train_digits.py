import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import tool_processes
from retinanet_tpu.estimator.cluster import preemption, strategy
from retinanet_tpu.estimator.model_dir import checkpoints

pytestmark = pytest.mark.long

TOOL = tool_processes.path("tools/examples/train_digits.py")
# Runs the tool as a command; the last line lists the imported modules of the package.
RUN_AND_LIST = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(*sorted(name for name in sys.modules if name.startswith("retinanet_tpu.")))
"""
STEPS = 40


@pytest.fixture(scope="module")
def digits():
    """The tool as a module. Its flags are removed, as the package defines the same."""
    module_spec = importlib.util.spec_from_file_location("train_digits", TOOL)
    module = importlib.util.module_from_spec(module_spec)
    names = ("model_dir", "max_steps")
    kept = {name: flags.FLAGS[name] for name in names if name in flags.FLAGS}
    owners = {name: flags.FLAGS.find_module_defining_flag(name) for name in kept}
    for name in kept:
        delattr(flags.FLAGS, name)
    module_spec.loader.exec_module(module)
    for name in names:
        delattr(flags.FLAGS, name)
    for name, flag in kept.items():
        flags.FLAGS[name] = flag
        flags.FLAGS.register_flag_by_module(owners[name], flag)
    return module


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A run of the command, and its model_dir."""
    model_dir = tmp_path_factory.mktemp("digits")
    flag = f"--model_dir={model_dir}"
    return tool_processes.run_python("-c", RUN_AND_LIST, TOOL, flag), model_dir


def make_estimator(digits, model_dir, num_devices=1):
    cpu_strategy = strategy.make_strategy("cpu", num_devices=num_devices)
    runner = digits.make_estimator(str(model_dir), cpu_strategy)
    # The runs of these tests are shorter than the interval of the tool.
    runner.config = dataclasses.replace(runner.config, save_checkpoints_steps=STEPS)
    return runner


@pytest.fixture(scope="module")
def straight(digits, tmp_path_factory):
    """The estimator of an uninterrupted run on one device."""
    runner = make_estimator(digits, tmp_path_factory.mktemp("straight"))
    runner.train(digits.train_input_fn, STEPS)
    return runner


def read(runner):
    path = checkpoints.latest(runner.model_dir)
    assert checkpoints.step_of(path) == STEPS
    return checkpoints.read(path)


def test_the_command_learns_to_read_and_exports_the_best(command, digits):
    done, model_dir = command
    assert done.returncode == 0, done.stderr
    lines = (model_dir / "eval" / "eval.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["global_step"] for record in records] == [100, 200, 300]
    assert records[-1]["accuracy"] > 0.95
    assert f"test images: {records[-1]['accuracy']:.3f}" in done.stdout
    (exported,) = (model_dir / "export" / "best").glob("[0-9]*")
    served = tf.saved_model.load(exported).signatures["serving_default"]
    images, labels = digits.draw(digits.NUM_TEST, seed=1)
    predicted = served(images=tf.constant(images))["digits"].numpy()
    best = max(record["accuracy"] for record in records)
    assert np.mean(predicted == labels) == pytest.approx(best)


def test_the_estimator_imports_nothing_of_detection(command):
    done, _ = command
    modules = [name.split(".") for name in done.stdout.splitlines()[-1].split()]
    known = {"errors", "estimator", "json_files", "replicas", "startup", "xla"}
    known |= {"exit_codes", "log_progress", "optional_packages"}
    assert {parts[1] for parts in modules} == known
    assert ["retinanet_tpu", "estimator", "train_step"] in modules


def test_two_devices_give_the_weights_of_one(digits, straight, tmp_path):
    runner = make_estimator(digits, tmp_path, num_devices=2)
    runner.train(digits.train_input_fn, STEPS)
    one, two = read(straight), read(runner)
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-5, err_msg=name)
    a, b = (r.evaluate(digits.eval_input_fn) for r in (straight, runner))
    assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


def test_a_resumed_run_equals_an_uninterrupted_one(digits, straight, tmp_path):
    runner = make_estimator(digits, tmp_path)
    reasons = iter([None, "stopped by the test"])
    with pytest.raises(preemption.Preempted, match=f"step {STEPS // 2}"):
        runner.train(digits.train_input_fn, STEPS, stop_reason=lambda: next(reasons))
    again = make_estimator(digits, tmp_path)
    again.train(digits.train_input_fn, STEPS)
    one, two = read(straight), read(again)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-6, err_msg=name)


def test_there_is_one_prediction_for_each_image_in_order(digits, straight):
    batches = list(straight.predict(digits.eval_input_fn))
    predicted = np.concatenate([batch["digits"] for batch in batches])
    _, labels = digits.draw(digits.NUM_TEST, seed=1)
    accuracy = straight.evaluate(digits.eval_input_fn)["accuracy"]
    assert np.mean(predicted == labels) == pytest.approx(accuracy)
    for batch in batches:
        np.testing.assert_allclose(batch["probabilities"].sum(axis=1), 1, atol=1e-5)
