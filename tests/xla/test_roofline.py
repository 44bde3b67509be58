import pytest

from retinanet_tpu.xla import roofline


def test_the_slower_of_compute_and_memory_is_the_bound():
    device = roofline.Device(flops_per_sec=100.0, bytes_per_sec=10.0, hbm_bytes=1.0)
    assert roofline.roofline(200, 10, device) == (2.0, "compute")
    assert roofline.roofline(100, 30, device) == (3.0, "memory")


@pytest.mark.parametrize(
    "name, topology, num_devices, num_hosts",
    [
        ("v2-8", "v2:2x2x1", 8, 1),
        ("v3-32", "v3:4x4x1", 32, 4),
        ("v4-8", "v4:2x2x1", 8, 1),
        ("v5litepod-1", "v5e:1x1", 1, 1),
        ("v5litepod-8", "v5e:2x4", 8, 1),
        ("v5e-8", "v5e:2x4", 8, 1),
        ("v5litepod-16", "v5e:4x4", 16, 4),
        ("v5p-8", "v5p:2x2x1", 4, 1),
        ("v6e-8", "v6e:2x4", 8, 1),
    ],
)
def test_a_slice_is_returned_by_googles_name(name, topology, num_devices, num_hosts):
    assert roofline.accelerator(name)[:3] == (topology, num_devices, num_hosts)


def test_the_error_of_a_misspelled_slice_has_similar_names():
    with pytest.raises(ValueError, match=r"'v3-31'; known are v3-32"):
        roofline.accelerator("v3-31")


def test_the_devices_of_every_slice_match_its_topology():
    cores_of_a_chip = {"v2": 2, "v3": 2, "v4": 2, "v5e": 1, "v5p": 1, "v6e": 1}
    for name, target in roofline.ACCELERATORS.items():
        kind, shape = target.topology.split(":")
        num_chips = 1
        for side in shape.split("x"):
            num_chips *= int(side)
        assert target.num_devices == num_chips * cores_of_a_chip[kind], name
        assert target.num_devices % target.num_hosts == 0, name


@pytest.mark.parametrize(
    "name, num_chips, bytes_per_sec, num_hops",
    [
        ("v3-8", 4, 2 * 70e9, 2),
        ("v3-32", 16, 2 * 70e9, 6),
        ("v3-2048", 1024, 4 * 70e9, 62),
        ("v4-32", 16, 3 * 50e9, 5),
        ("v4-128", 64, 6 * 50e9, 9),
        ("v5litepod-1", 1, 0, 0),
        ("v5litepod-128", 128, 3 * 50e9, 22),
        ("v6e-256", 256, 4 * 100e9, 30),
    ],
)
def test_a_corner_has_half_the_links_where_sides_are_open(
    name, num_chips, bytes_per_sec, num_hops
):
    target = roofline.interconnect(roofline.accelerator(name))
    assert target == (num_chips, bytes_per_sec, num_hops)


def test_every_generation_has_links_and_hosts():
    for target in roofline.ACCELERATORS.values():
        assert roofline.HOST_CPUS[roofline.generation(target)] > 0
        assert roofline.interconnect(target).bytes_per_sec >= 0
