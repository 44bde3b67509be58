import ast
import contextlib
import importlib
import inspect
import re

import numpy as np
import pytest
import tensorflow as tf

import repository
from retinanet_tpu.estimator.model_dir import checkpoints

PAGE = (repository.ROOT / "docs/migrating_from_tpuestimator.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith("| was ")
]
HERE = sorted({name for row in ROWS for name in re.findall("`([^`]+)`", row[1])})
BEFORE, AFTER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

# Arguments of the constructors, and members, in tensorflow_estimator 1.15.2.
OLD = {
    "TPUEstimator": """model_fn model_dir config params use_tpu train_batch_size
        eval_batch_size predict_batch_size batch_axis eval_on_tpu export_to_tpu
        export_to_cpu warm_start_from embedding_config_spec
        export_saved_model_api_version""",
    "TPUEstimatorSpec": """mode predictions loss train_op eval_metrics export_outputs
        scaffold_fn host_call training_hooks evaluation_hooks prediction_hooks""",
    # What it has beside those of TPUEstimatorSpec.
    "EstimatorSpec": "eval_metric_ops training_chief_hooks scaffold",
    "TPUConfig": """iterations_per_loop num_shards num_cores_per_replica
        per_host_input_for_training tpu_job_name initial_infeed_sleep_secs
        input_partition_dims eval_training_input_configuration
        experimental_host_call_every_n_steps""",
    "RunConfig": """tpu_config evaluation_master master cluster model_dir tf_random_seed
        save_summary_steps save_checkpoints_steps save_checkpoints_secs session_config
        keep_checkpoint_max keep_checkpoint_every_n_hours log_step_count_steps
        train_distribute device_fn protocol eval_distribute experimental_distribute
        experimental_max_worker_delay_secs session_creation_timeout_secs""",
    "TPUContext": """current_input_fn_deployment num_replicas num_hosts current_host
        num_of_replicas_per_host device_assignment device_for_replica
        tpu_host_placement_function""",
    "TrainSpec": "input_fn max_steps hooks",
    "EvalSpec": """input_fn steps name hooks exporters start_delay_secs
        throttle_secs""",
    "WarmStartSettings": """ckpt_to_initialize_from vars_to_warm_start
        var_name_to_vocab_info var_name_to_prev_var_name""",
    "BestExporter": """name serving_input_receiver_fn event_file_pattern compare_fn
        assets_extra as_text exports_to_keep""",
    "LatestExporter": """name serving_input_receiver_fn assets_extra as_text
        exports_to_keep""",
    "FinalExporter": "name serving_input_receiver_fn assets_extra as_text",
}
METHODS = {
    "train": "input_fn hooks steps max_steps saving_listeners",
    "evaluate": "input_fn steps hooks checkpoint_path name",
    "predict": "input_fn predict_keys hooks checkpoint_path yield_single_examples",
}
OLD_NAMES = [
    *(f"{c}.{name}" for c, names in OLD.items() for name in names.split()),
    *(f"{f}({name})" for f, names in METHODS.items() for name in names.split()),
]


def find(name):
    """Returns what a dotted name of the page stands for."""
    head, *rest = name.split(".")
    for package in ("retinanet_tpu.estimator", "retinanet_tpu"):
        with contextlib.suppress(ModuleNotFoundError):
            found = importlib.import_module(f"{package}.{head}")
            break
    else:
        raise AssertionError(f"No module {head}.")
    for place, part in enumerate(rest):
        if hasattr(found, "__path__"):
            found = importlib.import_module(f"{found.__name__}.{part}")
        elif part in inspect.get_annotations(found) and place == len(rest) - 1:
            return part  # A field, perhaps without a default.
        else:
            found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", HERE)
def test_what_the_page_names_is_here(name):
    path, argument = re.fullmatch(r"([\w.]+)(?:\((\w+)=\))?", name).groups()
    found = find(path)
    assert argument is None or argument in inspect.signature(found).parameters


def test_a_name_that_is_not_here_is_found_out():
    with pytest.raises(AttributeError):
        find("tpu_estimator.TPUEstimator.trian")
    with pytest.raises(AssertionError):
        find("estimater.TPUEstimator")


def test_every_row_says_where_and_why():
    for row in ROWS:
        assert len(row) == 3 and all(row), row
        names = re.sub("`[^`]+`", "name", row[1])
        assert re.fullmatch("removed|user code|name(, name)*", names), row


@pytest.mark.parametrize("name", OLD_NAMES)
def test_every_old_name_has_one_row(name):
    assert sum(row[0].count(f"`{name}`") for row in ROWS) == 1


def test_no_old_name_is_made_up():
    classes = "|".join(OLD)
    listed = {
        name for row in ROWS for name in re.findall(rf"`((?:{classes})\.\w+)`", row[0])
    }
    assert listed <= set(OLD_NAMES)


def test_the_model_before_is_python():
    ast.parse(BEFORE)


def test_the_model_after_learns(tmp_path):
    rng = np.random.default_rng(0)
    prototypes, labels = rng.normal(size=[10, 784]), rng.integers(10, size=512)
    x = (prototypes[labels] + rng.normal(size=[512, 784])).astype(np.float32)
    names = {
        "examples": lambda: tf.data.Dataset.from_tensor_slices((x, labels)),
        "model_dir": str(tmp_path),
    }
    exec(AFTER, names)
    assert names["results"]["accuracy"] > 0.95
    assert names["results"]["global_step"] == 200
    assert checkpoints.steps(str(tmp_path)) == [100, 200]
