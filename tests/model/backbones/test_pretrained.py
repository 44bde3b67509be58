import numpy as np
import pytest
import tensorflow as tf

import foreign_resnets
from retinanet_tpu import replicas
from retinanet_tpu.model import layers
from retinanet_tpu.model.backbones import pretrained, resnet, weight_files


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
def test_safetensors_give_the_features_of_pytorch(tmp_path, depth, kind, size):
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


def test_a_batch_with_the_moments_of_the_origin_trains_as_there(tmp_path):
    # The epsilon is folded into gamma, so it also holds for the batch's own moments.
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


def test_a_backbone_inside_of_a_model_is_found(tmp_path):
    state = foreign_resnets.torch_state(*foreign_resnets.BOTTLENECKS)
    inside = {f"backbone.body.{name}": tensor for name, tensor in state.items()}
    inside["rpn.conv1.weight"] = np.zeros(3, np.float32)
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
        foreign_resnets.write_safetensors(tmp_path / "b.safetensors", inside),
        foreign_resnets.TORCHVISION,
    )
    for one, two in zip(plain.variables, wrapped.variables, strict=True):
        np.testing.assert_array_equal(one, two)


def test_weights_of_a_detector_are_taken_without_its_heads(tmp_path):
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


def test_frozen_variables_get_weights_too(weights):
    with layers.frozen(["backbone/stem"]):
        backbone = foreign_resnets.make_backbone(
            foreign_resnets.TORCHVISION, depth=14, width=4
        )
    before = backbone.stem_conv.kernel.numpy()
    foreign_resnets.load(backbone, weights, foreign_resnets.TORCHVISION)
    assert not np.allclose(backbone.stem_conv.kernel, before)


def test_other_depth_is_named(weights):
    message = r"This is a ResNet-14, the backbone a ResNet-26: set ResNet.depth = 14"
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(
            foreign_resnets.make_backbone(
                foreign_resnets.TORCHVISION, depth=26, width=4
            ),
            weights,
            foreign_resnets.TORCHVISION,
        )


def test_other_width_shows_both_shapes(weights):
    message = r"conv1/kernel is \(1, 1, 4, 4\), not \(1, 1, 8, 8\).*ResNet.width"
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(
            foreign_resnets.make_backbone(
                foreign_resnets.TORCHVISION, depth=14, width=8
            ),
            weights,
            foreign_resnets.TORCHVISION,
        )


def test_parts_that_a_resnet_lacks_are_shown(tmp_path):
    state = foreign_resnets.torch_state(*foreign_resnets.BOTTLENECKS)
    state["layer1.0.se.fc1.weight"] = np.zeros(3, np.float32)
    file = foreign_resnets.write_safetensors(tmp_path / "a.safetensors", state)
    with pytest.raises(ValueError, match=r"1 tensors .*layer1.0.se.fc1.weight has no"):
        foreign_resnets.load(
            foreign_resnets.make_backbone(
                foreign_resnets.TORCHVISION, depth=14, width=4
            ),
            file,
            foreign_resnets.TORCHVISION,
        )


def test_a_projection_too_many_is_answered_with_the_gin_file(tmp_path):
    state = foreign_resnets.torch_state(*foreign_resnets.BASIC_BLOCKS)
    file = foreign_resnets.write_safetensors(tmp_path / "a.safetensors", state)
    backbone = resnet.ResNet(depth=10, width=4, symmetric_pool_padding=True)
    message = r"shortcut/gamma is absent.*Include model/pretrained_torchvision"
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(backbone, file, foreign_resnets.TORCHVISION)


@pytest.mark.parametrize("name", ["stride_in_1x1", "symmetric_pool_padding"])
def test_other_layers_than_the_weights_expect_are_an_error(weights, name):
    expected = foreign_resnets.settings(foreign_resnets.TORCHVISION, "ResNet")[name]
    backbone = foreign_resnets.make_backbone(
        foreign_resnets.TORCHVISION, depth=14, width=4, **{name: not expected}
    )
    message = f"ResNet.{name} is {not expected}, not {expected}.*Include model/pretr"
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(backbone, weights, foreign_resnets.TORCHVISION)


def test_other_pixels_than_the_weights_expect_are_an_error(weights):
    backbone = foreign_resnets.make_backbone(
        foreign_resnets.TORCHVISION, depth=14, width=4
    )
    message = r"`normalize` makes black and white .*pretrained_torchvision.gin"
    with pytest.raises(ValueError, match=message):
        pretrained.load(
            backbone,
            str(weights),
            normalize_fn=foreign_resnets.make_normalize_fn(foreign_resnets.KERAS),
            read_run_fn=None,
        )


def test_a_file_cut_short_is_an_error(weights):
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"no whole .safetensors file"):
        foreign_resnets.load(
            foreign_resnets.make_backbone(
                foreign_resnets.TORCHVISION, depth=14, width=4
            ),
            weights,
            foreign_resnets.TORCHVISION,
        )


def test_what_is_not_there_is_an_error_that_says_what_may_be():
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
