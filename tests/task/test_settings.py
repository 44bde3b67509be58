import inspect

import gin
import pytest

from retinanet_tpu import errors
from retinanet_tpu.task import configurables, settings

PEST = ["pest_lite0.gin"]


@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("Heads.box_coder = @SideDistances()", "Anchors.box_coder"),
        ("Heads.norm_fn = @NoNorm", "RetinaNet.norm_fn"),
        ("RetinaNet.num_anchors = 3", "Anchors.num_scales"),
        ("EfficientNet.seed = 3", "SEED"),
        ("a/FPN.seed = 3", "SEED"),
        ("BiFPN.norm_fn=@GroupNorm", "own_norm_fn"),
    ],
)
def test_a_setting_that_the_network_overrides_is_an_error(setting, advice):
    name = setting.partition("=")[0].strip().removeprefix("a/")
    with pytest.raises(errors.UserError, match=f"{name} has no effect.*{advice}"):
        settings.parse(PEST, [setting])


def test_settings_that_reach_the_network_are_accepted():
    text = settings.parse(PEST, ["RetinaNet.norm_fn = @GroupNorm"])
    assert "RetinaNet.seed = %SEED" in text


def test_a_saved_setting_without_effect_does_not_prevent_an_evaluation(tmp_path):
    path = tmp_path / "config.gin"
    path.write_text(settings.parse(PEST, []) + "\nHeads.norm_fn = @NoNorm\n")
    assert "Heads.norm_fn" in settings.parse([], [], saved=str(path))
    with pytest.raises(errors.UserError, match=r"FPN\.seed has no effect"):
        settings.parse([], ["FPN.seed = 3"], saved=str(path))


def test_parts_of_a_network_of_the_user_may_have_any_setting():
    with gin.unlock_config():
        gin.external_configurable(lambda neck_fn: neck_fn, "own_neck", module="mine")
    own = ["RetinaNet.neck_fn = @own_neck", "own_neck.neck_fn = @FPN"]
    assert "FPN.seed" in settings.parse(PEST, [*own, "FPN.seed = 3"])


def test_the_parts_have_the_parameters_that_the_network_passes():
    for name in settings._PARTS:
        parameters = inspect.signature(configurables.CONFIGURABLES[name]).parameters
        assert set(parameters) & set(settings._PASSED), name
