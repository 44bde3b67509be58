"""Compares converted weights with the libraries that they are from."""

import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import foreign_resnets
import torch_models
from retinanet_tpu.model.backbones import efficientnet, pretrained, weight_files

pytestmark = pytest.mark.long

KERAS, TORCHVISION = foreign_resnets.KERAS, foreign_resnets.TORCHVISION
SIZES = ((64, 70), (97, 128))  # One side is odd at several levels.


@pytest.fixture(scope="module")
def keras_model():
    """Keras's ResNet-50, all of its variables random."""
    model = tf.keras.applications.ResNet50(weights=None, include_top=False)
    rng = np.random.default_rng(3)
    for layer in model.layers:
        if layer.name.endswith("_bn"):
            layer.set_weights(foreign_resnets.statistics(rng, layer.gamma.shape[0]))
        elif layer.name.endswith("_conv"):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, rng.normal(0, 0.1, bias.shape)])
    return model


def _keras_features(model, images):
    names = ["conv2_block3_out", "conv3_block4_out", "conv4_block6_out"]
    outputs = [model.get_layer(name).output for name in [*names, "conv5_block3_out"]]
    preprocess = tf.keras.applications.resnet.preprocess_input
    return [
        x.numpy()
        for x in tf.keras.Model(model.inputs, outputs)(preprocess(images.astype("f4")))
    ]


@pytest.mark.parametrize("name", ["a.weights.h5", "a.keras", "legacy.h5"])
def test_files_of_keras_reproduce_its_features(keras_model, tmp_path, name):
    file = tmp_path / name
    keras_model.save_weights(file) if ".weights" in name else keras_model.save(file)
    backbone = foreign_resnets.make_backbone(KERAS, depth=50)
    assert foreign_resnets.load(backbone, file, KERAS) == "a ResNet-50 of Keras"
    images = foreign_resnets.pictures()
    ours = foreign_resnets.features(backbone, KERAS, images)
    foreign_resnets.assert_same(ours, _keras_features(keras_model, images))


@pytest.fixture
def downloaded(keras_model, monkeypatch):
    """Replaces Keras's loader, and returns the model that it returns."""

    def fetch(*, weights, include_top):
        assert (weights, include_top) == ("imagenet", False)
        return keras_model

    monkeypatch.setattr(tf.keras.applications, "ResNet50", fetch)
    return keras_model


def test_imagenet_loads_keras_weights_of_the_backbones_depth(downloaded):
    backbone = foreign_resnets.make_backbone(KERAS, depth=50)
    foreign_resnets.load(backbone, pretrained.IMAGENET, KERAS)
    kernel = downloaded.get_layer("conv1_conv").kernel.numpy()
    np.testing.assert_array_equal(backbone.stem_conv.kernel, kernel[:, :, ::-1])


def test_a_depth_that_keras_lacks_is_an_error():
    backbone = foreign_resnets.make_backbone(KERAS, depth=10, width=4)
    with pytest.raises(ValueError, match=r"-50, -101 and -152, not of ResNet-10"):
        foreign_resnets.load(backbone, pretrained.IMAGENET, KERAS)


@pytest.mark.usefixtures("downloaded")
def test_keras_weights_with_settings_of_torch_are_an_error():
    backbone = foreign_resnets.make_backbone(TORCHVISION, depth=50)
    message = (
        r"stride_in_1x1 is False, not True; `normalize` .*model/pretrained_keras.gin"
    )
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(backbone, pretrained.IMAGENET, TORCHVISION)


def test_a_failed_download_is_an_error_with_the_remedy(monkeypatch):
    def fetch(**kwargs):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(tf.keras.applications, "ResNet101", fetch)
    with pytest.raises(ValueError, match=r"ResNet-101 \(URL fetch failure\).*\.h5"):
        weight_files.download_keras(101)


def test_another_model_of_keras_is_an_error(tmp_path):
    layers = [tf.keras.Input([8, 8, 3]), tf.keras.layers.Conv2D(2, 3)]
    tf.keras.Sequential(layers).save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match=r"has 1 convolutions.*have 53, 104, 155"):
        weight_files.read_keras(str(tmp_path / "a.weights.h5"))
    tf.io.gfile.copy(str(tmp_path / "a.weights.h5"), "ram://weights/a.h5")
    with pytest.raises(ValueError, match=r"ram.*has 1 convolutions"):
        weight_files.read_keras("ram://weights/a.h5")
    (tmp_path / "b.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"b.h5 is no Keras file"):
        weight_files.read_keras(str(tmp_path / "b.h5"))


@pytest.mark.parametrize(
    ("library", "name", "suffix"),
    [
        ("torchvision", "resnet18", ".pth"),
        ("torchvision", "resnet50", ".pth"),
        ("timm", "resnet26", ".safetensors"),
        ("timm", "resnet34", ".safetensors"),
    ],
)
def test_files_of_pytorch_reproduce_its_features(tmp_path, library, name, suffix):
    backbone = foreign_resnets.make_backbone(TORCHVISION, depth=int(name[6:]))
    _assert_equals_pytorch(tmp_path, backbone, library, name, suffix, TORCHVISION)


TENSORFLOW = "pretrained_tensorflow.gin"
INCEPTION = "pretrained_inception.gin"
LITE = "pretrained_efficientnet_lite.gin"


@pytest.mark.parametrize(
    ("library", "name", "suffix", "gin_file"),
    [
        ("efficientnet_lite_pytorch", "efficientnet-lite0", ".pth", LITE),
        ("efficientnet_lite_pytorch", "efficientnet-lite1", ".pth", LITE),
        ("timm", "tf_efficientnet_lite0", ".safetensors", INCEPTION),
        ("timm", "efficientnet_lite0", ".safetensors", TORCHVISION),
        ("timm", "tf_efficientnet_b0", ".safetensors", TENSORFLOW),
        ("timm", "tf_efficientnet_b0.ap_in1k", ".safetensors", INCEPTION),
        ("timm", "efficientnet_b1.ft_in1k", ".safetensors", TORCHVISION),
        ("torchvision", "efficientnet_b0", ".pth", TORCHVISION),
        ("torchvision", "efficientnet_b5", ".pth", TORCHVISION),
    ],
)
def test_efficientnets_of_pytorch_reproduce_their_features(
    tmp_path, library, name, suffix, gin_file
):
    variant = re.search(r"(lite|b)\d", name)[0]
    settings = foreign_resnets.settings(gin_file, "EfficientNet")
    backbone = efficientnet.EfficientNet(variant=variant, **settings)
    _assert_equals_pytorch(tmp_path, backbone, library, name, suffix, gin_file)


def _assert_equals_pytorch(tmp_path, backbone, library, name, suffix, gin_file):
    """Asserts that a backbone with a model's weights has its features."""
    # Not imported in this process, see torch_models.
    if not importlib.util.find_spec(library):
        pytest.skip(f"{library} is not installed")
    images = [foreign_resnets.pictures(size) for size in SIZES]
    np.savez(tmp_path / "images.npz", *images)
    files = ("images.npz", f"a{suffix}", "features.npz")
    paths = [tmp_path / file for file in files]
    command = [sys.executable, torch_models.__file__, library, name, *paths]
    subprocess.run(list(map(str, command)), check=True)
    foreign_resnets.load(backbone, paths[1], gin_file)
    theirs = list(np.load(paths[2]).values())
    ours = [foreign_resnets.features(backbone, gin_file, x)[-4:] for x in images]
    for i, levels in enumerate(ours):
        foreign_resnets.assert_same(levels, theirs[4 * i : 4 * i + 4], tolerance=1e-5)


def test_torch_files_without_a_resnet_are_an_error(tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "a.pth"
    torch.save({"backbone": {"patch_embed": torch.zeros(1)}}, file)
    with pytest.raises(ValueError, match=r"\['backbone'\], no state dict with the k"):
        weight_files.read_torch(str(file))
    torch.save(tmp_path, file)  # A path is an object, not a tensor.
    with pytest.raises(ValueError, match=r"cannot be read as a file of tensors"):
        weight_files.read_torch(str(file))


def test_the_error_without_torch_contains_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match=r"missing: pip install.*\.safetensors"):
        weight_files.read_torch(str(tmp_path / "a.pth"))
