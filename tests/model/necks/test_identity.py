import pytest
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model.necks import identity


def test_features_are_returned_finest_first():
    neck = identity.Identity({5: 8, 4: 8, 3: 8, 2: 4}, min_level=3, max_level=5)
    assert (neck.levels, neck.num_channels) == ((3, 4, 5), 8)
    assert not neck.variables
    features = {level: tf.fill([1, 2, 2, 8], level) for level in (2, 5, 4, 3)}
    outputs = neck(features, is_training=True)
    assert [int(x[0, 0, 0, 0]) for x in outputs] == [3, 4, 5]


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({3: 8, 4: 8}, r"levels 3..7 must rise within .* \[3, 4\]; set min_level"),
        (dict.fromkeys(range(3, 7), 8) | {7: 4}, r"same number of channels.*7: 4.*FPN"),
    ],
)
def test_a_backbone_without_a_pyramid_is_an_error(channels, message):
    with pytest.raises(errors.UserError, match=message):
        identity.Identity(channels)


def test_falling_levels_are_an_error():
    with pytest.raises(errors.UserError, match=r"levels 4..3 must rise"):
        identity.Identity({3: 8, 4: 8}, min_level=4, max_level=3)
