import numpy as np
import pytest
import tensorflow as tf

import foreign_resnets
from retinanet_tpu import replicas
from retinanet_tpu.model import variable_paths
from retinanet_tpu.model.backbones import resnet
from retinanet_tpu.model.pretrained import loading, weight_files


@pytest.fixture
def weights(tmp_path):
    return foreign_resnets.write_safetensors(
        tmp_path / "a.safetensors",
        foreign_resnets.torch_state(*foreign_resnets.BOTTLENECKS),
    )


@pytest.mark.parametrize("size", [(64, 70), (51, 96)])
@pytest.mark.parametrize(
    ("depth", "kind"),
    [
        (14, foreign_resnets.BOTTLENECKS),
        (26, ((2, 2, 2, 2), True)),
        (10, foreign_resnets.BASIC_BLOCKS),
    ],
)
def test_safetensors_reproduce_the_features_of_pytorch(tmp_path, depth, kind, size):
    state = foreign_resnets.torch_state(*kind)
    file = foreign_resnets.write_safetensors(tmp_path / "a.safetensors", state)
    backbone = foreign_resnets.make_backbone(
        foreign_resnets.TORCHVISION, depth=depth, width=4
    )
    assert foreign_resnets.load(backbone, file, foreign_resnets.TORCHVISION).startswith(
        f"a ResNet-{depth} of torch"
    )
    images = foreign_resnets.pictures(size)
    expected = foreign_resnets.torch_features(state, images)
    foreign_resnets.assert_same(
        foreign_resnets.features(backbone, foreign_resnets.TORCHVISION, images),
        expected,
    )


def test_a_batch_with_the_original_moments_is_normalized_as_in_the_original(tmp_path):
    # The epsilon is folded into gamma, so it is also that of the batch's moments.
    state = foreign_resnets.torch_state(*foreign_resnets.BOTTLENECKS)
    file = foreign_resnets.write_safetensors(tmp_path / "a.safetensors", state)
    backbone = foreign_resnets.make_backbone(
        foreign_resnets.TORCHVISION, depth=14, width=4
    )
    foreign_resnets.load(backbone, file, foreign_resnets.TORCHVISION)
    norm = backbone.stem_norm
    noise = np.random.default_rng(2).normal(size=(64, 64, 4))
    noise = (noise - noise.mean((0, 1))) / noise.std((0, 1))
    x = noise * np.sqrt(norm.moving_variance) + norm.moving_mean
    x = tf.constant(x, tf.float32)
    np.testing.assert_allclose(
        norm(x, is_training=True), norm(x, is_training=False), atol=1e-3
    )


def test_half_precision_files_are_read(tmp_path):
    state = {
        n: t.astype(np.float16)
        for n, t in foreign_resnets.torch_state(*foreign_resnets.BOTTLENECKS).items()
    }
    file = foreign_resnets.write_safetensors(tmp_path / "a.safetensors", state)
    tensors = weight_files.read_safetensors(str(file))
    np.testing.assert_array_equal(tensors["fc.weight"], state["fc.weight"])
    foreign_resnets.load(
        foreign_resnets.make_backbone(foreign_resnets.TORCHVISION, depth=14, width=4),
        file,
        foreign_resnets.TORCHVISION,
    )


def test_a_backbone_is_loaded_from_a_larger_model(tmp_path):
    state = foreign_resnets.torch_state(*foreign_resnets.BOTTLENECKS)
    nested = {f"backbone.body.{name}": tensor for name, tensor in state.items()}
    nested["rpn.conv1.weight"] = np.zeros(3, np.float32)
    plain = foreign_resnets.make_backbone(
        foreign_resnets.TORCHVISION, depth=14, width=4
    )
    wrapped = foreign_resnets.make_backbone(
        foreign_resnets.TORCHVISION, depth=14, width=4, seed=1
    )
    foreign_resnets.load(
        plain,
        foreign_resnets.write_safetensors(tmp_path / "a.safetensors", state),
        foreign_resnets.TORCHVISION,
    )
    foreign_resnets.load(
        wrapped,
        foreign_resnets.write_safetensors(tmp_path / "b.safetensors", nested),
        foreign_resnets.TORCHVISION,
    )
    for one, two in zip(plain.variables, wrapped.variables, strict=True):
        np.testing.assert_array_equal(one, two)


def test_weights_of_a_detector_are_loaded_without_its_heads(tmp_path):
    trained = foreign_resnets.make_backbone(
        foreign_resnets.TORCHVISION, depth=14, width=4, seed=1
    )
    tensors = {replicas.variable_path(v): v.numpy() for v in trained.variables}
    tensors["heads/class/logits/bias"] = np.zeros(3)
    fresh = resnet.ResNet(depth=14, width=4)
    text = foreign_resnets.load(
        fresh,
        "run/model.ckpt-7",
        foreign_resnets.TORCHVISION,
        {"run/model.ckpt-7": tensors}.get,
    )
    assert text == "a ResNet-14 of a detector"
    for one, two in zip(trained.variables, fresh.variables, strict=True):
        np.testing.assert_array_equal(one, two)


def test_frozen_variables_are_loaded_too(weights):
    with variable_paths.frozen(["backbone/stem"]):
        backbone = foreign_resnets.make_backbone(
            foreign_resnets.TORCHVISION, depth=14, width=4
        )
    before = backbone.stem_conv.kernel.numpy()
    foreign_resnets.load(backbone, weights, foreign_resnets.TORCHVISION)
    assert not np.allclose(backbone.stem_conv.kernel, before)


def test_the_error_of_another_depth_contains_both_depths(weights):
    message = r"This is a ResNet-14, the backbone a ResNet-26: set ResNet.depth = 14"
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(
            foreign_resnets.make_backbone(
                foreign_resnets.TORCHVISION, depth=26, width=4
            ),
            weights,
            foreign_resnets.TORCHVISION,
        )


def test_the_error_of_another_width_contains_both_shapes(weights):
    message = r"conv1/kernel is \(1, 1, 4, 4\), not \(1, 1, 8, 8\).*ResNet.width"
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(
            foreign_resnets.make_backbone(
                foreign_resnets.TORCHVISION, depth=14, width=8
            ),
            weights,
            foreign_resnets.TORCHVISION,
        )


def test_the_error_of_unknown_parts_contains_their_names(tmp_path):
    state = foreign_resnets.torch_state(*foreign_resnets.BOTTLENECKS)
    state["layer1.0.se.fc1.weight"] = np.zeros(3, np.float32)
    file = foreign_resnets.write_safetensors(tmp_path / "a.safetensors", state)
    with pytest.raises(ValueError, match=r"1 tensors .*layer1.0.se.fc1.weight is unk"):
        foreign_resnets.load(
            foreign_resnets.make_backbone(
                foreign_resnets.TORCHVISION, depth=14, width=4
            ),
            file,
            foreign_resnets.TORCHVISION,
        )


def test_the_error_of_a_missing_projection_contains_the_gin_file(tmp_path):
    state = foreign_resnets.torch_state(*foreign_resnets.BASIC_BLOCKS)
    file = foreign_resnets.write_safetensors(tmp_path / "a.safetensors", state)
    backbone = resnet.ResNet(depth=10, width=4, symmetric_pool_padding=True)
    message = r"shortcut/gamma is absent.*Include model/pretrained_torchvision"
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(backbone, file, foreign_resnets.TORCHVISION)


@pytest.mark.parametrize("name", ["stride_in_1x1", "symmetric_pool_padding"])
def test_settings_of_layers_that_differ_from_the_weights_are_an_error(weights, name):
    expected = foreign_resnets.settings(foreign_resnets.TORCHVISION, "ResNet")[name]
    backbone = foreign_resnets.make_backbone(
        foreign_resnets.TORCHVISION, depth=14, width=4, **{name: not expected}
    )
    message = f"ResNet.{name} is {not expected}, not {expected}.*Include model/pretr"
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(backbone, weights, foreign_resnets.TORCHVISION)


def test_a_normalization_of_pixels_that_differs_from_the_weights_is_an_error(weights):
    backbone = foreign_resnets.make_backbone(
        foreign_resnets.TORCHVISION, depth=14, width=4
    )
    message = r"`normalize` returns for black and white .*pretrained_torchvision.gin"
    with pytest.raises(ValueError, match=message):
        loading.load(
            backbone,
            str(weights),
            normalize_fn=foreign_resnets.make_normalize_fn(foreign_resnets.KERAS),
            read_run_fn=None,
        )


def test_a_truncated_file_is_an_error(weights):
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"no valid .safetensors file"):
        foreign_resnets.load(
            foreign_resnets.make_backbone(
                foreign_resnets.TORCHVISION, depth=14, width=4
            ),
            weights,
            foreign_resnets.TORCHVISION,
        )


def test_the_error_of_a_missing_file_contains_the_valid_choices():
    backbone = foreign_resnets.make_backbone(
        foreign_resnets.TORCHVISION, depth=14, width=4
    )

    def read_run(path):
        raise FileNotFoundError(path)

    with pytest.raises(FileNotFoundError, match=r"r50.pth does not exist"):
        foreign_resnets.load(backbone, "r50.pth", foreign_resnets.TORCHVISION)
    with pytest.raises(
        FileNotFoundError, match=r"'imagenet', or a file of .*safetensors"
    ):
        foreign_resnets.load(
            backbone, "runs/coco", foreign_resnets.TORCHVISION, read_run
        )
