"""Compares converted weights with the libraries that they are from."""

import functools
import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import foreign_resnets
import torch_models
from retinanet_tpu.model.backbones import efficientnet, mobilenet_v3
from retinanet_tpu.model.pretrained import loading, weight_files

pytestmark = pytest.mark.long

KERAS, TORCHVISION = foreign_resnets.KERAS, foreign_resnets.TORCHVISION
TENSORFLOW = "pretrained_tensorflow.gin"
INCEPTION = "pretrained_inception.gin"
LITE = "pretrained_efficientnet_lite.gin"
SIZES = ((64, 70), (97, 128))  # One side is odd at several levels.


def _make_keras(name, **kwargs):
    """Returns a model of Keras without a top, all of its variables random."""
    make_fn = getattr(tf.keras.applications, name)
    model = make_fn(weights=None, include_top=False, **kwargs)
    rng = np.random.default_rng(3)
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.Normalization):
            # As the published weights of EfficientNet have it: a root is missing, for
            # which the model that downloads them has another layer.
            mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
            layer.set_weights([mean, deviation**2, np.array(0)])
            layer.finalize_state()  # It computes with copies of its variables.
        elif layer.name.endswith("bn"):
            layer.set_weights(foreign_resnets.statistics(rng, layer.gamma.shape[0]))
        elif len(weights := layer.get_weights()) == 2:
            kernel, bias = weights
            layer.set_weights([kernel, rng.normal(0, 0.1, bias.shape)])
    return model


@pytest.fixture(scope="module")
def keras_model():
    """Keras's ResNet-50, all of its variables random."""
    return _make_keras("ResNet50")


def _keras_features(model, images, names):
    outputs = [model.get_layer(name).output for name in names]
    return [x.numpy() for x in tf.keras.Model(model.inputs, outputs)(images)]


@pytest.mark.parametrize(
    "name",
    [
        "a.weights.h5",
        pytest.param("a.keras", marks=pytest.mark.slow),
        pytest.param("legacy.h5", marks=pytest.mark.slow),
    ],
)
def test_files_of_keras_reproduce_its_features(keras_model, tmp_path, name):
    file = tmp_path / name
    keras_model.save_weights(file) if ".weights" in name else keras_model.save(file)
    backbone = foreign_resnets.make_backbone(KERAS, depth=50)
    assert foreign_resnets.load(backbone, file, KERAS) == "a ResNet-50 of Keras"
    images = foreign_resnets.pictures()
    ours = foreign_resnets.features(backbone, KERAS, images)
    preprocessed = tf.keras.applications.resnet.preprocess_input(images.astype("f4"))
    blocks = ("conv2_block3", "conv3_block4", "conv4_block6", "conv5_block3")
    names = [f"{block}_out" for block in blocks]
    foreign_resnets.assert_same(ours, _keras_features(keras_model, preprocessed, names))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("application", "gin_file", "make_fn", "blocks"),
    [
        (
            "EfficientNetB0",
            TENSORFLOW,
            functools.partial(efficientnet.EfficientNet, variant="b0"),
            ("block2b_add", "block3b_add", "block5c_add", "block7a_project_bn"),
        ),
        (
            "MobileNetV3Large",
            INCEPTION,
            functools.partial(mobilenet_v3.MobileNetV3, variant="large"),
            [f"expanded_conv_{i}_add" for i in (2, 5, 11, 14)],
        ),
        (
            "MobileNetV3Small",
            INCEPTION,
            functools.partial(mobilenet_v3.MobileNetV3, variant="small"),
            [
                "expanded_conv_project_bn",
                *(f"expanded_conv_{i}_add" for i in (2, 7, 10)),
            ],
        ),
    ],
)
def test_mobile_networks_of_keras_reproduce_their_features(
    tmp_path, application, gin_file, make_fn, blocks
):
    file = tmp_path / "a.weights.h5"
    backbone = make_fn()
    # Without a size, Keras pads as if all sides were even.
    for size in SIZES:
        model = _make_keras(application, input_shape=(*size, 3))
        model.save_weights(file)
        foreign_resnets.load(backbone, file, gin_file)
        images = foreign_resnets.pictures(size)
        ours = foreign_resnets.features(backbone, gin_file, images)[-4:]
        theirs = _keras_features(model, images.astype("f4"), blocks)
        foreign_resnets.assert_same(ours, theirs, tolerance=1e-5)


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
    foreign_resnets.load(backbone, loading.IMAGENET, KERAS)
    kernel = downloaded.get_layer("conv1_conv").kernel.numpy()
    np.testing.assert_array_equal(backbone.stem_conv.kernel, kernel[:, :, ::-1])


def test_a_depth_that_keras_lacks_is_an_error():
    backbone = foreign_resnets.make_backbone(KERAS, depth=10, width=4)
    with pytest.raises(ValueError, match=r"ResNet50, .*; the backbone is a ResNet-10"):
        foreign_resnets.load(backbone, loading.IMAGENET, KERAS)


@pytest.mark.usefixtures("downloaded")
def test_keras_weights_with_settings_of_torch_are_an_error():
    backbone = foreign_resnets.make_backbone(TORCHVISION, depth=50)
    message = (
        r"stride_in_1x1 is False, not True; `normalize` .*model/pretrained_keras.gin"
    )
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(backbone, loading.IMAGENET, TORCHVISION)


def test_a_failed_download_is_an_error_with_the_remedy(monkeypatch):
    def fetch(**kwargs):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(tf.keras.applications, "ResNet101", fetch)
    with pytest.raises(ValueError, match=r"ResNet101 \(URL fetch failure\).*\.h5"):
        weight_files.download_keras(weight_files.KerasApplication("ResNet101", 104))


def test_another_model_of_keras_is_an_error(tmp_path):
    layers = [tf.keras.Input([8, 8, 3]), tf.keras.layers.Conv2D(2, 3)]
    tf.keras.Sequential(layers).save_weights(tmp_path / "a.weights.h5")
    applications = loading.KERAS_APPLICATIONS
    with pytest.raises(ValueError, match=r"has 1 convolutions.*ResNet101 has 104,"):
        weight_files.read_keras(str(tmp_path / "a.weights.h5"), applications)
    tf.io.gfile.copy(str(tmp_path / "a.weights.h5"), "ram://weights/a.h5")
    with pytest.raises(ValueError, match=r"ram.*has 1 convolutions"):
        weight_files.read_keras("ram://weights/a.h5", applications)
    (tmp_path / "b.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"b.h5 is no Keras file"):
        weight_files.read_keras(str(tmp_path / "b.h5"), applications)


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


@pytest.mark.parametrize(
    ("library", "name", "suffix", "gin_file"),
    [
        ("timm", "tf_mobilenetv3_large_100", ".safetensors", INCEPTION),
        ("timm", "mobilenetv3_large_100.ra_in1k", ".safetensors", TORCHVISION),
        ("timm", "mobilenetv3_small_100", ".safetensors", TORCHVISION),
        ("torchvision", "mobilenet_v3_large", ".pth", TORCHVISION),
        ("torchvision", "mobilenet_v3_small", ".pth", TORCHVISION),
    ],
)
def test_mobilenets_of_pytorch_reproduce_their_features(
    tmp_path, library, name, suffix, gin_file
):
    variant = re.search("large|small", name)[0]
    settings = foreign_resnets.settings(gin_file, "MobileNetV3")
    backbone = mobilenet_v3.MobileNetV3(variant=variant, **settings)
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
