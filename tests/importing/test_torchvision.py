import numpy as np
import pytest

import foreign_detectors
from retinanet_tpu import errors
from retinanet_tpu.importing import torchvision


@pytest.mark.parametrize("is_v2", [False, True])
def test_the_file_determines_the_settings(is_v2):
    detector = torchvision.convert(foreign_detectors.torchvision_state(is_v2=is_v2))
    assert detector.gin_file.endswith("_torchvision_v2.gin" if is_v2 else "vision.gin")
    assert detector.settings == (
        "NUM_CLASSES = 4",
        "ResNet.depth = 14",
        "ResNet.width = 4",
        "FPN.num_channels = 32",
        "Heads.num_channels = 32",
        "Heads.num_convs = 4",
    )
    # The published first version has frozen normalizations with an epsilon of 0.
    assert detector.epsilon == (1e-5 if is_v2 else 0)


def test_boxes_come_in_the_order_y_x_h_w_and_kernels_in_that_of_tensorflow():
    state = foreign_detectors.torchvision_state()
    tensors = torchvision.convert(state).tensors
    theirs = state["head.regression_head.bbox_reg.weight"]  # [36, in, H, W]
    ours = tensors["heads/box/deltas/kernel"]  # [H, W, in, 36]
    for anchor in (0, 8):
        for our_part, their_part in ((0, 1), (1, 0), (2, 3), (3, 2)):
            np.testing.assert_array_equal(
                ours[..., 4 * anchor + our_part],
                theirs[4 * anchor + their_part].transpose(1, 2, 0),
            )
    bias = state["head.regression_head.bbox_reg.bias"]
    assert tensors["heads/box/deltas/bias"][:4].tolist() == bias[[1, 0, 3, 2]].tolist()
    # Classes and anchors have the same order in both.
    bias = state["head.classification_head.cls_logits.bias"]
    assert tensors["heads/class/logits/bias"].tolist() == bias.tolist()


def test_old_names_are_those_of_the_same_layers():
    old = torchvision.convert(foreign_detectors.torchvision_state(is_old=True))
    new = torchvision.convert(foreign_detectors.torchvision_state())
    assert old.settings == new.settings
    assert old.tensors.keys() == new.tensors.keys()
    for path, tensor in new.tensors.items():
        np.testing.assert_array_equal(old.tensors[path], tensor)


def test_a_prefix_of_a_wrapper_is_removed():
    state = foreign_detectors.torchvision_state()
    wrapped = {f"module.{name}": x for name, x in state.items()}
    assert torchvision.is_source(wrapped)
    assert torchvision.convert(wrapped).settings == torchvision.convert(state).settings


def test_the_second_version_has_biases_of_zero():
    state = foreign_detectors.torchvision_state(is_v2=True)
    tensors = torchvision.convert(state).tensors
    assert not tensors["heads/box/conv3/bias"].any()
    gamma = state["head.regression_head.conv.2.1.weight"]
    np.testing.assert_array_equal(tensors["heads/box/norm3/gamma"], gamma)


def test_wrong_files_are_errors_that_list_what_differs():
    state = foreign_detectors.torchvision_state()
    with pytest.raises(errors.UserError, match=r"head.keypoints.weight is unknown"):
        torchvision.convert(state | {"head.keypoints.weight": np.zeros(3)})
    lacking = {n: x for n, x in state.items() if "inner_blocks.0" not in n}
    with pytest.raises(errors.UserError, match="fpn/lateral3/kernel is absent"):
        torchvision.convert(lacking)
    p6 = np.zeros((32, 128, 3, 3), np.float32)
    with pytest.raises(errors.UserError, match=r"no normalization.*made from C5"):
        torchvision.convert(state | {"backbone.fpn.extra_blocks.p6.weight": p6})
    body = "backbone.body.layer2.0.conv1.weight"
    with pytest.raises(errors.UserError, match=r"stages of \(1, 0, 1, 1\) bottlenecks"):
        torchvision.convert({name: x for name, x in state.items() if name != body})
