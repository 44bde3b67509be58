import gin
import pytest

from retinanet_tpu.estimator import gin_state


@gin.configurable(module="test_gin_state")
def height(meters=1):
    return meters


@pytest.fixture
def users_gin():
    """Returns the settings of a user's program, which has finalized them."""
    gin.clear_config()
    gin.parse_config("height.meters = 7\nscope/height.meters = 8\nUNUSED = 4")
    height()  # The call is in the operative configuration.
    gin.finalize()
    yield gin.config_str(), gin.operative_config_str()
    gin.clear_config()


def change():
    """Does what loading a run does."""
    gin.clear_config()
    gin.parse_config("height.meters = 2")
    gin.add_config_file_search_path("/elsewhere")
    gin.config._FILE_READERS[:] = []
    gin.finalize()


def test_the_configuration_is_that_of_before(users_gin):
    readers, search_path = list(gin.config._FILE_READERS), gin.config._LOCATION_PREFIXES
    before = list(search_path)
    with gin_state.separate_configuration():
        assert height() == 1 and not gin.config_is_locked()
        change()
        assert height() == 2
    assert height() == 7 and gin.config_is_locked()
    assert (gin.config_str(), gin.operative_config_str()) == users_gin
    assert readers == gin.config._FILE_READERS and search_path == before


def test_an_error_also_restores_it(users_gin):
    with pytest.raises(KeyError), gin_state.separate_configuration():
        change()
        raise KeyError
    assert gin.config_str() == users_gin[0]


def test_the_scope_of_the_caller_does_not_apply(users_gin):
    with gin.config_scope("scope"):
        with gin_state.separate_configuration():
            gin.parse_config("height.meters = 2\nscope/height.meters = 3")
            assert height() == 2
        assert height() == 8


def test_hooks_of_the_caller_are_not_called(users_gin):
    hooks = gin.config._FINALIZE_HOOKS
    hooks.append(lambda config: {"height.meters": 9})
    before = list(hooks)
    try:
        with gin_state.separate_configuration():
            change()
            assert height() == 2
            assert hooks == before[:-1]  # Those of gin itself.
        assert hooks == before
    finally:
        hooks[:] = before[:-1]
