import json
import sys

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors, structures
from retinanet_tpu.xla import lower

LOG = """I1126 10:00:00 train.py:1] Replicas: 1
I1126 [global_step 100/300] [ETA: 00:01:00] [50.00 imgs/s] {'input-wait': 0.5}
I1126 [global_step 200/300] [ETA: 00:01:00] [400.50 imgs/s] {'input-wait': 0.02}
I1126 [global_step 300/300] [ETA: 00:00:00] [300.50 imgs/s] {'a': 1, 'input-wait': 4e-3}
"""


def small_step(batch_size=2):
    """Lowers a step with the arguments of training, a variable and a constant."""

    def rows(dtype, *shape):
        return tf.TensorSpec([batch_size, *shape], dtype)

    batch = (
        structures.Features(
            images=rows(tf.uint8, 8, 8, 3),
            image_ids=rows(tf.int64),
            image_sizes=rows(tf.int32, 2),
            scales=rows(tf.float32, 2),
        ),
        structures.Labels(
            boxes_yxyx=rows(tf.float32, 5, 4),
            classes=rows(tf.int32, 5),
            is_crowd=rows(tf.bool, 5),
            num_boxes=rows(tf.int32),
        ),
    )
    kernel = tf.Variable(tf.random.stateless_normal([3, 3, 3, 4], [0, 0], 1, 0.3))
    offsets = tf.constant([1.0, 2.0, 3.0, 4.0])

    def step(batch, step):
        features, labels = batch
        images = tf.cast(features.images, tf.float32) / 255
        outputs = tf.nn.conv2d(images, kernel, 1, "SAME") + offsets
        kernel.assign_sub(0.01 * tf.ones_like(kernel))
        mean = tf.reduce_mean(outputs) + tf.reduce_mean(labels.boxes_yxyx)
        return tf.stack([mean, tf.cast(step, tf.float32)])

    specs = [batch, tf.TensorSpec([], tf.int64)]
    return lower.lower(step, specs, lower.AheadOfTimeStrategy(1))


def test_the_speed_of_a_training_leaves_out_its_first_loop(imported, tmp_path):
    evaluations = tmp_path / "eval.jsonl"
    evaluations.write_text('{"AP": 0.1}\n{"AP": 0.58, "AP50": 0.9, "global_step": 3}\n')
    summary = imported("gpu_report").summarize_training(LOG, evaluations)
    assert summary["step"] == summary["max_steps"] == 300
    assert summary["images_per_sec"] == 350.5 and summary["input_wait"] == 0.012
    assert summary["evaluation"]["AP"] == 0.58
    assert imported("gpu_report").summarize_training("", tmp_path / "absent") == {}


def test_the_peak_is_that_of_the_device_or_of_the_user(imported):
    report = imported("gpu_report")
    assert report.peak_flops("NVIDIA H100 80GB HBM3", None) == 989.4e12
    assert report.peak_flops("NVIDIA A100-SXM4-40GB", None) == 312e12
    assert report.peak_flops("cpu", None) is None
    assert report.peak_flops("cpu", 2.0) == 2e12
    measured = {"device_kind": "NVIDIA H200", "tflop_per_sec": 494.7}
    assert report.share(measured, None) == {"share_of_peak": pytest.approx(0.5)}


def test_the_table_has_measured_and_failed_steps(imported):
    step = {"images_per_sec": 400.0, "tflop_per_sec": 200.0, "share_of_peak": 0.42}
    failed = {"batch_size": 64, "out_of_memory": "…"}
    results = {"step": [{"batch_size": 8, **step}, failed]}
    lines = imported("gpu_report").table(results).splitlines()
    assert lines[2] == "| step | 8 | 20.00 | 400.0 | 200 | 42.0% | - | - |"
    assert lines[3].startswith("| step | 64 | out_of_memory |")


def test_a_command_that_takes_too_long_ends(imported, tmp_path):
    tool = imported("timed_command")
    sleep = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]
    result = tool.run(sleep, 0.5, tmp_path / "log")
    assert result.code is None and "time_limit" in result.failure()
    assert result.secs < 20
    assert tool.run(sleep, 0, tmp_path / "log").code is None
    failed = tool.run([sys.executable, "-c", "1/0"], 60, tmp_path / "log")
    assert "ZeroDivisionError" in failed.failure()["error"]


def test_a_batch_is_valid(imported):
    program = small_step()
    *arguments, step = imported("engine_step").synthetic_batch(program)
    for array, spec in zip(arguments, program.arguments, strict=False):
        assert array.shape == spec.shape and array.dtype == spec.dtype.as_numpy_dtype
    boxes = arguments[4]
    assert (boxes[..., 2:] > boxes[..., :2]).all() and step == 0


def test_a_saved_program_has_its_constants_but_not_its_weights(imported, tmp_path):
    tool = imported("engine_step")
    program = small_step()
    tool.save(program, tmp_path / "a")
    loaded = tool.read(tmp_path / "a")
    assert loaded.hlo == program.hlo
    assert list(loaded.arguments) == list(program.arguments)
    rng = np.random.default_rng(0)
    for value, before in zip(loaded.captures, program.captures, strict=True):
        if isinstance(before, tf.Variable):
            new = tool.synthetic_value(value, rng)
            assert new.shape == before.shape and new.dtype == before.dtype
            assert new.mean() == pytest.approx(1, abs=0.1)
            assert new.std() == pytest.approx(0.3, abs=0.1)
        else:
            np.testing.assert_array_equal(value, before)
    with pytest.raises(errors.MissingFileError, match="--gin_file"):
        tool.read(tmp_path / "absent")


def test_each_size_has_its_comparison_before_the_next_size(imported):
    tool = imported("gpu")
    flags = tool._flags(["--batch_sizes", "8", "32"])
    names = [name for name, _ in tool._stages(flags, None)]
    assert names == ["train", "lower", *["step", "torchvision"] * 2]


def test_the_last_object_of_an_output_is_read(imported):
    output = '{"a": 1}\n{"a": 2}\nW1127 a library ends\n'
    assert imported("timed_command").last_json(output) == {"a": 2}


@pytest.mark.slow
@pytest.mark.long
def test_all_stages_run_without_a_gpu(imported, monkeypatch, tmp_path, capsys):
    pytest.importorskip("jax")
    tool = imported("gpu")
    imported("engine_step").save(small_step(), tmp_path / "programs" / "batch_2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(tool, "train_command", trained)
    with pytest.raises(SystemExit) as exit_info:
        tool.main([
            "--device=cpu", f"--output_dir={tmp_path}/out", f"--data_dir={tmp_path}",
            f"--programs={tmp_path}/programs", "--batch_sizes", "2", "--steps=2",
            "--rounds=2", "--peak_tflops=0.1", "--torch_python=false",
        ])  # fmt: skip
    results = json.loads((tmp_path / "out" / "result.json").read_text())
    train = results["train"]
    assert train["step"] == 300 and train["evaluation"]["AP"] == 0.5
    assert results["lower"] == {"read_from": f"{tmp_path}/programs"}
    (step,) = results["step"]
    assert step["batch_size"] == 2 and len(step["ms_per_step"]) == 2
    # A convolution of 3 x 3 x 3 channels to 4; its border has fewer.
    assert 0.7 < step["tflop"] * 1e12 / (2 * 2 * 8 * 8 * 27 * 4) < 1.3
    assert step["is_finite"] and 0 < step["share_of_peak"] < 1
    assert step["memory_mb"]["arguments"] > 0 and len(step["fingerprint"]) == 16
    assert exit_info.value.code == 0
    assert "cannot import torch" in results["torchvision"][0]["skipped"]
    assert "| step | 2 |" in capsys.readouterr().out


def trained(flags, model_dir):
    """Returns a command with the output and the files of the trainer."""
    evaluations = model_dir / "eval" / "eval.jsonl"
    code = (
        "import pathlib, sys; path = pathlib.Path(sys.argv[1]);"
        "path.parent.mkdir(parents=True); path.write_text(sys.argv[2]);"
        "print(sys.argv[3])"
    )
    record = '{"AP": 0.5, "AP50": 0.9, "global_step": 300}\n'
    return [sys.executable, "-c", code, str(evaluations), record, LOG]
