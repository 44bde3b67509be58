"""Fixtures of the estimator's tests."""

import pytest
import tensorflow as tf

from sidecar_scenario import SidecarScenario


@pytest.fixture(params=["local", "ram"])
def scenario(request, tmp_path):
    name = str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"
    tf.io.gfile.makedirs(f"{name}/run")
    return SidecarScenario(f"{name}/run")
