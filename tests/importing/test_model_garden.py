import numpy as np
import pytest

import foreign_detectors
from retinanet_tpu import errors
from retinanet_tpu.importing import model_garden

END = "/.ATTRIBUTES/VARIABLE_VALUE"


def test_layers_get_their_paths_and_slots_are_dropped():
    given = foreign_detectors.model_garden_tensors()
    detector = model_garden.convert(given)
    assert detector.settings[:3] == (
        "NUM_CLASSES = 4",
        "ResNet.depth = 14",
        "ResNet.width = 4",
    )
    for path, name in (
        ("backbone/stem/norm/gamma", "backbone/layer_with_weights-1/gamma"),
        (
            "backbone/stage3/block1/norm_shortcut/beta",
            "backbone/layer_with_weights-3/_norm0/beta",
        ),
        (
            "backbone/stage5/block1/shortcut/kernel",
            "backbone/layer_with_weights-5/_shortcut/kernel",
        ),
        ("fpn/output6/kernel", "decoder/layer_with_weights-4/kernel"),
        ("fpn/norm7/beta", "decoder/layer_with_weights-12/beta"),
        ("heads/class/norm2_level7/gamma", "head/_cls_norms/4/1/gamma"),
        ("heads/box/conv4/bias", "head/_box_convs/3/bias"),
    ):
        np.testing.assert_array_equal(detector.tensors[path], given[name + END])
    assert not any("momentum" in path for path in detector.tensors)


@pytest.mark.parametrize(
    ("name", "path", "depth"),
    [("_classifier", "class/logits", 4), ("_box_regressor", "box/deltas", 4)],
)
def test_anchors_come_by_ratio_then_by_scale(name, path, depth):
    given = foreign_detectors.model_garden_tensors()
    ours = model_garden.convert(given).tensors[f"heads/{path}/bias"]
    theirs = given[f"head/{name}/bias{END}"]
    for ratio in range(3):
        for scale in range(3):
            our_anchor, their_anchor = 3 * ratio + scale, 3 * scale + ratio
            np.testing.assert_array_equal(
                ours[depth * our_anchor :][:depth],
                theirs[depth * their_anchor :][:depth],
            )


def test_wrong_files_are_errors_that_list_what_differs():
    given = foreign_detectors.model_garden_tensors()
    extra = {f"head/_att_convs/0/kernel{END}": np.zeros(2)}
    with pytest.raises(
        errors.UserError, match=r"_att_convs/0/kernel \(2,\) is unknown"
    ):
        model_garden.convert(given | extra)
    del given[f"head/_box_regressor/bias{END}"]
    with pytest.raises(errors.UserError, match="heads/box/deltas/bias is absent"):
        model_garden.convert(given)
