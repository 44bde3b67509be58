import numpy as np
import pytest

from retinanet_tpu import errors

jax = pytest.importorskip("jax")
pjrt = pytest.importorskip("retinanet_tpu.xla.pjrt")


@pytest.fixture
def devices():
    return pjrt.connect("cpu", 4)


def test_a_group_has_the_first_devices_of_the_process(devices):
    assert (devices.count, devices.num_local, devices.platform) == (4, 4, "cpu")
    assert devices.kind
    assert pjrt.connect("cpu").count == 1
    assert list(devices.mesh.devices) == jax.devices("cpu")[:4]


def test_too_many_devices_are_an_error(devices):
    count = len(jax.local_devices(backend="cpu"))  # Any test may have started them.
    message = f"requests {count + 1} CPU, but PJRT has {count}"
    with pytest.raises(errors.UserError, match=message):
        pjrt.connect("cpu", count + 1)


def test_an_absent_platform_is_an_error_with_its_extra():
    with pytest.raises(errors.UserError, match=r"cannot start GPU.*\[xla-gpu\]"):
        pjrt.connect("gpu")


def test_replicated_values_are_on_each_device(devices):
    values = [np.arange(6.0).reshape(2, 3), np.int64(2**40), np.zeros([0], np.float32)]
    arrays = devices.replicate(values)
    for value, array in zip(values, arrays, strict=True):
        assert array.dtype == value.dtype and array.shape == value.shape
        shards = array.addressable_shards
        assert [shard.device for shard in shards] == jax.devices("cpu")[:4]
        for shard in shards:
            np.testing.assert_array_equal(shard.data, value)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64, bool]
)
def test_shares_are_joined_in_the_order_of_the_devices(devices, dtype):
    shares = [[np.full([2, 3], i).astype(dtype), np.int64(7)] for i in range(4)]
    joined, scalar = devices.shard(shares)
    assert joined.shape == (8, 3) and joined.dtype == dtype
    for i, shard in enumerate(joined.addressable_shards):
        np.testing.assert_array_equal(shard.data, shares[i][0])
    assert scalar.shape == () and scalar.dtype == np.int64
    (whole,) = devices.fetch_joined([joined])
    np.testing.assert_array_equal(whole, np.concatenate([s[0] for s in shares]))
    first, number = devices.fetch([joined, scalar])
    np.testing.assert_array_equal(first, shares[0][0])
    assert number == 7


def test_a_share_for_each_device_is_required(devices):
    with pytest.raises(ValueError):
        devices.shard([[np.zeros([2])]] * 3)


def test_fetched_values_are_copies(devices):
    source = np.zeros([1000], np.float32)
    (array,) = devices.replicate([source.copy()])
    (fetched,) = devices.fetch([array])
    fetched += 1
    np.testing.assert_array_equal(devices.fetch([array])[0], source)
    assert fetched.flags.writeable


def test_a_single_process_gathers_its_own_number():
    assert (pjrt.process_index(), pjrt.process_count()) == (0, 1)
    np.testing.assert_array_equal(pjrt.gather(2.5), [2.5])


@pytest.mark.parametrize(
    "message, kind, words",
    [
        ("RESOURCE_EXHAUSTED: Out of memory", errors.UserError, "lower BATCH_SIZE"),
        ("UNAVAILABLE: closed", pjrt.DeviceLostError, "closed"),
        ("ABORTED: peer", pjrt.DeviceLostError, "peer"),
        ("INTERNAL: NCCL operation failed", errors.UserError, "shm-size"),
        ("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY", errors.UserError, "nvidia-smi"),
        ("INTERNAL: Connection reset by peer", jax.errors.JaxRuntimeError, "reset"),
        ("INTERNAL: a bug", jax.errors.JaxRuntimeError, "a bug"),
        ("INVALID_ARGUMENT: shape", jax.errors.JaxRuntimeError, "shape"),
    ],
)
def test_errors_of_the_runtime_are_translated(message, kind, words):
    with pytest.raises(kind, match=words) as caught, pjrt.translated_errors():
        raise jax.errors.JaxRuntimeError(message)
    assert type(caught.value) is kind


@pytest.mark.parametrize("words", ["Gloo all-reduce", "Connection reset", "NCCL"])
def test_an_error_of_a_connection_is_a_lost_process(words, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(pjrt.DeviceLostError, match=words), pjrt.translated_errors():
        raise jax.errors.JaxRuntimeError(f"INTERNAL: {words} failed")


def test_a_cache_that_cannot_be_written_is_not_used(tmp_path, caplog, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(jax.config, "update", lambda name, value: settings.append(name))
    settings = []
    with caplog.at_level("WARNING", logger="absl"):
        pjrt.connect("cpu", 1, cache_dir=str(tmp_path / "file" / "cache"))
    assert "make_strategy.compilation_cache" in caplog.text
    assert "jax_compilation_cache_dir" not in settings
    pjrt.connect("cpu", 1, cache_dir=str(tmp_path / "cache"))
    assert "jax_compilation_cache_dir" in settings
    assert not any((tmp_path / "cache").iterdir())


def test_int64_stays_int64():
    assert jax.config.jax_enable_x64
