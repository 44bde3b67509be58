"""Fixtures of the estimator's tests."""

import functools
import gc
import importlib.util

import pytest
import tensorflow as tf

import linear
from sidecar_scenario import SidecarScenario

needs_jax = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="needs the extra [xla-cpu]"
)


@pytest.fixture(scope="module", autouse=True)
def _excludes_garbage_of_other_tests():
    """The sidecar collects garbage; that of a thousand tests takes it a minute."""
    gc.freeze()


@pytest.fixture(params=["local", "ram"])
def scenario(request, tmp_path):
    name = str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"
    tf.io.gfile.makedirs(f"{name}/run")
    return SidecarScenario(f"{name}/run")


@pytest.fixture(params=["tf.distribute", pytest.param("pjrt", marks=needs_jax)])
def make_estimator(request):
    """Returns linear.make_estimator with each engine."""
    return functools.partial(linear.make_estimator, engine=request.param)
