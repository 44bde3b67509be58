import shutil

import numpy as np
import pytest
import tensorflow as tf

import commands
import foreign_detectors
import foreign_resnets
from retinanet_tpu import errors, import_detector
from retinanet_tpu.data import category_map
from retinanet_tpu.estimator import gin_files, train_step
from retinanet_tpu.importing import sources
from retinanet_tpu.task import configurables

SMALL = ["IMAGE_SIZE = (64, 96)"]


def write_torchvision(folder, state=None, **kwargs):
    state = state or foreign_detectors.torchvision_state(**kwargs)
    return str(
        foreign_resnets.write_safetensors(folder / "detector.safetensors", state)
    )


def run_import(checkpoint, model_dir, **flags):
    flags.setdefault("gin_param", SMALL)
    commands.run(
        import_detector.main, model_dir, None, checkpoint=str(checkpoint), **flags
    )


def network_of(model_dir):
    gin_files.parse(
        [], [], known=configurables.CONFIGURABLES, saved=f"{model_dir}/config.gin"
    )
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    network = run.make_network()
    train_step.load(network, f"{model_dir}/model.ckpt-0")
    return run, network


def test_an_imported_run_has_the_network_and_the_weights_of_the_file(tmp_path):
    model_dir = tmp_path / "run"
    run_import(write_torchvision(tmp_path, is_v2=True), model_dir)
    run, network = network_of(model_dir)
    assert run.recipe.image_size == (64, 96)
    assert run.recipe.num_classes == 4
    state = foreign_detectors.torchvision_state(is_v2=True)
    last = network.heads.class_tower.last_conv
    bias = state["head.classification_head.cls_logits.bias"]
    np.testing.assert_array_equal(last.bias, bias)
    categories = category_map.read(f"{model_dir}/categories.json")
    assert categories.names == ["", "class 1", "class 2", "class 3"]
    predictions = network(np.zeros([1, 64, 96, 3], np.uint8), is_training=False)
    sides = [level.shape[1:3] for level in predictions.class_logits]
    assert sides == [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]


def test_an_epsilon_of_zero_is_folded_into_gamma(tmp_path):
    run_import(write_torchvision(tmp_path), tmp_path / "run")
    _, network = network_of(tmp_path / "run")
    norm = network.backbone.stages[0][0].norms[1]
    state = foreign_detectors.torchvision_state()
    name = "backbone.body.layer1.0.bn2"
    expected = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"])
    scale, _ = norm.affine(None, is_training=False)
    np.testing.assert_allclose(scale, expected, rtol=1e-4)


def test_a_checkpoint_of_model_garden_is_imported_from_its_directory(tmp_path):
    tensors = foreign_detectors.model_garden_tensors()
    names = sorted(tensors)
    (tmp_path / "ckpt").mkdir()
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "ckpt/ckpt-7"),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tensors[name] for name in names],
    )
    size = ["IMAGE_SIZE = (128, 128)"]
    run_import(tmp_path / "ckpt", tmp_path / "run", gin_param=size)
    _, network = network_of(tmp_path / "run")
    kernel = tensors["decoder/layer_with_weights-7/kernel/.ATTRIBUTES/VARIABLE_VALUE"]
    np.testing.assert_array_equal(network.neck.outputs[-1].kernel, kernel)
    assert not network.backbone.stem_conv.symmetric_padding


def test_categories_are_those_of_the_file_or_of_coco(tmp_path):
    coco = sources.categories(91, None)
    assert len(coco.categories) == 80
    assert [coco.names[i] for i in (0, 1, 12, 18, 90)] == [
        *("", "person", "", "dog", "toothbrush")
    ]
    mine = category_map.from_coco([{"id": 3, "name": "cat"}], index_by_id=True)
    category_map.write(mine, str(tmp_path / "mine.json"))
    run_import(
        write_torchvision(tmp_path),
        tmp_path / "run",
        categories=str(tmp_path / "mine.json"),
    )
    assert category_map.read(f"{tmp_path}/run/categories.json") == mine
    with pytest.raises(errors.UserError, match="has 5 classes"):
        sources.categories(5, str(tmp_path / "mine.json"))


def test_wrong_input_is_an_error_that_contains_what_differs(tmp_path):
    with pytest.raises(errors.UserError, match="--checkpoint is missing"):
        commands.run(import_detector.main, tmp_path / "run", None)
    with pytest.raises(errors.MissingFileError, match=r"a.pth does not exist"):
        run_import(tmp_path / "a.pth", tmp_path / "run")
    with pytest.raises(errors.MissingFileError, match="0 checkpoints"):
        run_import(tmp_path, tmp_path / "run")
    resnet = foreign_resnets.torch_state(*foreign_resnets.BOTTLENECKS)
    file = write_torchvision(tmp_path, resnet)
    with pytest.raises(errors.UserError, match=r"(?s)no detector.*BACKBONE_CHECKPOINT"):
        run_import(file, tmp_path / "run")
    state = foreign_detectors.torchvision_state()
    del state["backbone.fpn.extra_blocks.p7.bias"]
    file = write_torchvision(tmp_path, state)
    with pytest.raises(
        errors.UserError, match=r"output7/bias is absent, expected \(32"
    ):
        run_import(file, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(tmp_path):
    file = write_torchvision(tmp_path)
    run_import(file, tmp_path / "run")
    with pytest.raises(errors.UserError, match="has checkpoints of a run"):
        run_import(file, tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
