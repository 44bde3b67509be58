from retinanet_tpu.planning import report as report_lib

GIB = {"hbm_gib": 2.5, "hbm_gib_there": 15.48}
MB = {"argument_mb": 283, "result_mb": 0.0, "temporary_mb": 2035.4, "code_mb": 215}
COST = {
    "gflop": 4365.0,
    "hbm_traffic_mb": 19560.0,
    "on_chip_traffic_mb": 0,
    "ms_at_least": 70.98,
    "bound": "compute",
    "images_per_sec_at_most": 3607.1,
}
FITS = {
    "outcome": report_lib.FITS,
    "fits": True,
    "num_devices": 32,
    "images": 8,
    "setting": "BATCH_SIZE",
    **(GIB | MB | COST),
}
HOST = {"images_per_sec_of_host": 900.0, "images_per_core_sec": 300.0}
TOO_LARGE = {
    "outcome": report_lib.DOES_NOT_FIT,
    "fits": False,
    "missing_gib": 3.2,
    "error": "Ran out of memory",
    "num_devices": 32,
    "images": 64,
    "setting": "BATCH_SIZE",
}
REFUSED = {
    "outcome": report_lib.DOES_NOT_COMPILE,
    "fits": False,
    "error": "AsString has no kernel for XLA; made at task/x.py:7",
    "num_devices": 1,
    "images": 1,
    "setting": "",
}


def lines(**steps):
    report = {"topology": "v3-32", "num_devices": 32, "num_hosts": 4, "steps": steps}
    return report_lib.table(report).splitlines()


def cells(label, **steps):
    """Returns the cells of the first row of a label."""
    row = next(line for line in lines(**steps) if line.strip().startswith(label))
    return row.strip().removeprefix(label).split()


def test_a_step_is_a_column_of_figures():
    found = lines(train=FITS | HOST)
    assert found[0].split() == ["v3-32:", "32", "devices,", "4", "hosts", "train"]
    assert found[1].strip() == "fits"
    assert cells("images of a device", train=FITS) == ["8"]
    assert cells("GFLOP", train=FITS) == ["4,365"]
    assert cells("an image", train=FITS) == ["545.6"]
    assert cells("cores that takes", train=FITS | HOST) == ["3"]


def test_columns_are_aligned():
    found = lines(train=FITS | HOST, eval=FITS, predict=REFUSED)[:-1]
    assert len({len(line) for line in found}) == 1


def test_what_is_not_known_stays_empty():
    assert cells("GFLOP", train=FITS, eval=REFUSED) == ["4,365"]
    assert not any("host" in line for line in lines(train=FITS)[1:])


def test_a_step_that_does_not_fit_says_by_how_much_and_what_to_do():
    assert lines(train=TOO_LARGE)[-1] == (
        "train does not fit by 3.20 GiB; --find_batch_size finds the largest batch "
        "that does."
    )


def test_without_a_size_in_its_message_the_compiler_speaks():
    found = lines(train=TOO_LARGE | {"missing_gib": None})[-1]
    assert found.startswith("train does not fit (Ran out of memory); --find")


def test_a_step_without_a_batch_is_not_told_to_look_for_one():
    assert lines(predict=TOO_LARGE | {"setting": ""})[-1].endswith("3.20 GiB.")


def test_the_largest_batch_is_told_with_the_setting_for_it():
    found = lines(train=TOO_LARGE | {"largest_batch": 1536})
    assert found[-2:] == [
        "train does not fit by 3.20 GiB.",
        "train: the largest batch that fits is 1,536, 48 images on each of 32 devices; "
        "BATCH_SIZE sets it.",
    ]


def test_even_one_image_may_be_too_many():
    found = lines(train=TOO_LARGE | {"largest_batch": 0})
    assert found[-1] == "train: not even one image of a device fits."


def test_a_step_that_does_not_compile_says_why_and_where():
    assert lines(train=FITS, predict=REFUSED)[-1] == (
        "predict does not compile: AsString has no kernel for XLA; made at task/x.py:7"
    )
