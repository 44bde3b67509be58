import functools

import numpy as np
import pytest

import foreign_resnets
import toy_data
from retinanet_tpu import replicas
from retinanet_tpu.estimator import gin_files, train_loop, train_step
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.task import configurables, initialization, summary

pytestmark = pytest.mark.long

GIN_CONFIGS = toy_data.GIN_CONFIGS
TORCHVISION = GIN_CONFIGS / "model" / foreign_resnets.TORCHVISION
FROZEN = "FROZEN = ('backbone/stem', 'backbone/stage2')"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def weights(tmp_path):
    state = foreign_resnets.torch_state(*foreign_resnets.BASIC_BLOCKS, width=8)
    return foreign_resnets.write_safetensors(tmp_path / "r10.safetensors", state)


def _make_run(model_dir, data_dir, *bindings, gin_file=TORCHVISION):
    """Returns the tiny run with the settings of pretrained weights."""
    files = [str(GIN_CONFIGS / "quickstart.gin"), str(gin_file)]
    bindings = [*toy_data.TINY, *toy_data.TWO_LEVELS, *bindings]
    bindings.append(f"DATA_DIR = '{data_dir}'")
    gin_files.parse(files, bindings, known=configurables.CONFIGURABLES)
    strategy_fn = functools.partial(strategy.make_strategy, "cpu", num_devices=1)
    return configurables.make_run(str(model_dir), strategy_fn=strategy_fn)


def _start(run, model_dir, backbone_checkpoint):
    """Returns the state that a run begins with."""
    source = initialization.resolve_init(None, str(backbone_checkpoint))
    network_fn = run.make_network
    return train_loop.start(str(model_dir), network_fn, run.update_fn, source)


def _values(state):
    return {replicas.variable_path(v): v.numpy() for v in state.network.variables}


def test_a_run_trains_from_the_weights_of_a_file(weights, data_dir, tmp_path):
    bindings = (FROZEN, f"BACKBONE_CHECKPOINT = '{weights}'")
    run = _make_run(tmp_path / "run", data_dir, *bindings)
    trained = train_step.network_weights(toy_data.train(run, 2))
    backbone = foreign_resnets.make_backbone(TORCHVISION.name, depth=10, width=8)
    foreign_resnets.load(backbone, weights, TORCHVISION.name)
    for variable in backbone.variables:
        path = replicas.variable_path(variable)
        if path.startswith(("backbone/stem", "backbone/stage2")):
            np.testing.assert_array_equal(trained[path], variable)


def test_a_resumed_run_does_not_read_the_file(weights, data_dir, tmp_path):
    run = _make_run(tmp_path, data_dir)
    begun = _start(run, tmp_path, weights)
    begun.step = 1
    begun.save(str(tmp_path))
    weights.unlink()
    resumed = _start(run, tmp_path, weights)
    assert resumed.step == 1
    for one, two in zip(
        _values(begun).values(), _values(resumed).values(), strict=True
    ):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("is_folder", [True, False])
def test_only_the_backbone_of_a_detector_is_loaded(
    weights, data_dir, tmp_path, is_folder
):
    old = _start(_make_run(tmp_path / "a", data_dir), tmp_path / "a", weights)
    (tmp_path / "a").mkdir(exist_ok=True)
    path = old.save(str(tmp_path / "a"))
    run = _make_run(tmp_path / "b", data_dir, "SEED = 5")
    new = _start(run, tmp_path / "b", tmp_path / "a" if is_folder else path)
    for (name, before), after in zip(
        _values(old).items(), _values(new).values(), strict=True
    ):
        is_same = name.startswith("backbone/") or not name.endswith("/kernel")
        assert np.array_equal(before, after) == is_same


def test_a_detector_of_other_layers_or_pixels_is_an_error(weights, data_dir, tmp_path):
    text = gin_files.parse(
        [str(GIN_CONFIGS / "quickstart.gin"), str(TORCHVISION)],
        [*toy_data.TINY, f"DATA_DIR = '{data_dir}'"],
        known=configurables.CONFIGURABLES,
    )
    run = _make_run(tmp_path / "a", data_dir)
    path = _start(run, tmp_path / "a", weights).save(str(tmp_path))
    (tmp_path / "config.gin").write_text(text)
    _start(run, tmp_path / "b", path)
    macro = text.replace(
        "symmetric_pool_padding = True", "symmetric_pool_padding = %SYMMETRIC"
    )
    (tmp_path / "config.gin").write_text(f"{macro}\nSYMMETRIC = True\n")
    _start(run, tmp_path / "b", path)
    old_names = text.replace("symmetric_pool_padding", "has_symmetric_pool")
    (tmp_path / "config.gin").write_text(old_names)
    _start(run, tmp_path / "b", path)
    wrong = text.replace(
        "symmetric_pool_padding = True", "symmetric_pool_padding = False"
    )
    (tmp_path / "config.gin").write_text(wrong)
    with pytest.raises(
        ValueError, match=r"ResNet\.symmetric_pool_padding = False .*config"
    ):
        _start(run, tmp_path / "b", path)
    # ResNet pads symmetrically unless a run says otherwise.
    (tmp_path / "config.gin").write_text(f"{text}\nResNet.symmetric_padding = False\n")
    with pytest.raises(ValueError, match=r"ResNet\.symmetric_padding = False .*config"):
        _start(run, tmp_path / "b", path)
    (tmp_path / "config.gin").write_text(text.replace("0.485", "0.5"))
    with pytest.raises(ValueError, match=r"normalize\.mean_rgb = \(0\.5, "):
        _start(run, tmp_path / "b", path)


def test_frozen_weights_that_no_backbone_has_are_an_error(weights, data_dir, tmp_path):
    bindings = (f"BACKBONE_CHECKPOINT = '{weights}'", "FROZEN = ('backbone', 'fpn')")
    run = _make_run(tmp_path / "run", data_dir, *bindings)
    with pytest.raises(ValueError, match="random first values, such as fpn/"):
        toy_data.train(run, 2)


def test_two_sources_of_one_backbone_are_an_error(data_dir, tmp_path):
    bindings = ("BACKBONE_CHECKPOINT = 'a.pth'", "WARM_START = 'run'")
    with pytest.raises(ValueError, match=r"WARM_START is run.*is a\.pth; .*to None"):
        _make_run(tmp_path / "run", data_dir, *bindings)


def test_weights_without_their_gin_file_are_an_error(weights, data_dir, tmp_path):
    source = f"BACKBONE_CHECKPOINT = '{weights}'"
    nothing = GIN_CONFIGS / "quickstart.gin"
    run = _make_run(tmp_path / "run", data_dir, source, gin_file=nothing)
    with pytest.raises(ValueError, match=r"Include model/pretrained_torchvision\.gin"):
        toy_data.train(run, 2)


@pytest.mark.parametrize("name", ["pretrained_torchvision", "pretrained_keras"])
def test_settings_of_pretrained_weights_fit_the_runs(name):
    files = [GIN_CONFIGS / "coco_r50_640_1x.gin", GIN_CONFIGS / f"model/{name}.gin"]
    gin_files.parse(list(map(str, files)), [], known=configurables.CONFIGURABLES)
    assert "Trainable parameters: 33,865,815" in summary.summarize_run()
