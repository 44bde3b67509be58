import numpy as np
import pytest

import foreign_detectors
from retinanet_tpu import errors, replicas
from retinanet_tpu.importing import detector, model_garden_spinenet
from retinanet_tpu.model.backbones import spinenet

END = "/.ATTRIBUTES/VARIABLE_VALUE"


def spinenet_tensors(variant="49S"):
    """Returns tensors, names of variables and the backbone, its layers shuffled."""
    backbone = spinenet.SpineNet(variant=variant)
    pairs = list(model_garden_spinenet._outer_layers(backbone))
    groups = [[("", conv)] for conv, _ in pairs], [[("", norm)] for _, norm in pairs]
    blocks = [block for group in backbone.stem_blocks for block in group]
    blocks += [block for group in backbone.blocks for block in group.residuals]
    parts = [model_garden_spinenet._parts(block) for block in blocks]
    named = [(f"conv2d_{i + 7}", x) for i, x in enumerate(groups[0])]
    named += [(f"batch_normalization_{i}", x) for i, x in enumerate(groups[1])]
    # One series of numbers for both kinds of blocks is as good as two.
    named += [(f"block_{i}", x) for i, x in enumerate(parts)]
    order = np.random.default_rng(0).permutation(len(named))
    tensors, names = {}, {}
    for number, index in enumerate(order):
        layer, contents = named[index]
        for prefix, module in contents:
            for variable in module.variables:
                leaf = replicas.variable_path(variable).rpartition("/")[2]
                rest = "/".join(filter(None, (prefix, leaf)))
                key = f"backbone/layer_with_weights-{number}/{rest}{END}"
                tensors[key] = variable.numpy()
                names[key] = f"{layer}/{rest}"
    heads = foreign_detectors.model_garden_tensors()
    tensors |= {name: x for name, x in heads.items() if name.startswith("head/")}
    return tensors, names, backbone


def test_layers_are_paired_in_the_order_of_their_making():
    tensors, names, backbone = spinenet_tensors()
    assert model_garden_spinenet.is_source(tensors)
    result = model_garden_spinenet.convert(tensors, names)
    assert result.gin_file == "coco_spinenet49s_640.gin"
    assert "SpineNet.variant = '49S'" in result.settings
    for variable in backbone.variables:
        path = replicas.variable_path(variable)
        np.testing.assert_array_equal(result.tensors[path], variable)
    assert isinstance(result, detector.Detector)


def test_a_file_without_names_or_of_another_network_is_an_error():
    tensors, names, _ = spinenet_tensors()
    with pytest.raises(errors.UserError, match="no name of a variable of Keras"):
        model_garden_spinenet.convert(tensors, {})
    fewer = {k: x for k, x in tensors.items() if "_conv1" not in k or "-1" not in k}
    with pytest.raises(errors.UserError, match="no SpineNet of P3 to P7"):
        model_garden_spinenet.convert(fewer, names)
