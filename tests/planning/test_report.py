import dataclasses
import json

from retinanet_tpu.planning import report

COST = report.Cost(
    hbm_gib=2.5,
    hbm_gib_there=15.48,
    argument_mb=283,
    result_mb=0.0,
    temporary_mb=2035.4,
    code_mb=215,
    gflop=4365.0,
    accessed_mb=20000.0,
    hbm_traffic_mb=19560.0,
    on_chip_traffic_mb=0,
    ms_at_least=70.98,
    bound="compute",
    images_per_sec_at_most=3607.1,
    largest_moves=[],
)
HOST = report.HostLoad(images_per_sec_of_host=900.0, images_per_core_sec=300.0)
FITS = report.StepReport(8, 32, "BATCH_SIZE", report.FITS, missing_gib=0.0, cost=COST)
WITH_HOST = dataclasses.replace(FITS, host=HOST)
TOO_LARGE = report.StepReport(
    64,
    32,
    "BATCH_SIZE",
    report.DOES_NOT_FIT,
    missing_gib=3.2,
    error="Ran out of memory",
)
REFUSED = report.StepReport(
    1,
    1,
    "",
    report.DOES_NOT_COMPILE,
    error="AsString has no kernel for XLA; made at task/x.py:7",
)


def lines(**steps):
    return report.table(report.Report("v3-32", 32, 4, steps)).splitlines()


def cells(label, **steps):
    """Returns the cells of the first row of a label."""
    row = next(line for line in lines(**steps) if line.strip().startswith(label))
    return row.strip().removeprefix(label).split()


def test_a_step_is_a_column_of_figures():
    table = lines(train=WITH_HOST)
    assert table[0].split() == ["v3-32:", "32", "devices,", "4", "hosts", "train"]
    assert table[1].strip() == "fits"
    assert cells("images per device", train=FITS) == ["8"]
    assert cells("GFLOP", train=FITS) == ["4,365"]
    assert cells("per image", train=FITS) == ["545.6"]
    assert cells("cores needed", train=WITH_HOST) == ["3"]


def test_columns_are_aligned():
    table = lines(train=WITH_HOST, eval=FITS, predict=REFUSED)[:-1]
    assert len({len(line) for line in table}) == 1


def test_unknown_figures_stay_empty():
    assert cells("GFLOP", train=FITS, eval=REFUSED) == ["4,365"]
    assert not any("host" in line for line in lines(train=FITS)[1:])
    unmeasured = dataclasses.replace(HOST, images_per_core_sec=None)
    table = lines(train=dataclasses.replace(FITS, host=unmeasured))
    assert "needed of each host" in table[-1]


def test_a_step_that_does_not_fit_has_a_note_with_the_missing_memory_and_the_remedy():
    assert lines(train=TOO_LARGE)[-1] == (
        "train does not fit by 3.20 GiB; --find_batch_size finds the largest batch "
        "that does."
    )


def test_without_the_missing_memory_the_note_quotes_the_compiler():
    note = lines(train=dataclasses.replace(TOO_LARGE, missing_gib=None))[-1]
    assert note.startswith("train does not fit (Ran out of memory); --find")


def test_a_step_without_a_batch_has_no_hint_to_search_for_one():
    step = dataclasses.replace(TOO_LARGE, setting="")
    assert lines(predict=step)[-1].endswith("3.20 GiB.")


def test_the_largest_batch_is_printed_with_its_setting():
    table = lines(train=dataclasses.replace(TOO_LARGE, largest_batch=1536))
    assert table[-2:] == [
        "train does not fit by 3.20 GiB.",
        "train: the largest batch that fits is 1,536, 48 images on each of 32 devices; "
        "BATCH_SIZE sets it.",
    ]


def test_even_one_image_may_be_too_large():
    table = lines(train=dataclasses.replace(TOO_LARGE, largest_batch=0))
    assert table[-1] == "train: not even one image per device fits."


def test_a_step_that_does_not_compile_has_a_note_with_the_line_of_code():
    assert lines(train=FITS, predict=REFUSED)[-1] == (
        "predict does not compile: AsString has no kernel for XLA; made at task/x.py:7"
    )


def test_json_has_only_the_keys_of_known_figures():
    common = ["images", "num_devices", "setting", "fits", "outcome"]
    cost = [field.name for field in dataclasses.fields(report.Cost)]
    host = ["images_per_sec_of_host", "images_per_core_sec"]
    assert list(WITH_HOST.to_json()) == [*common, "missing_gib", *cost, *host]
    assert list(TOO_LARGE.to_json()) == [*common, "missing_gib", "error"]
    assert list(REFUSED.to_json()) == [*common, "error"]
    json.dumps(report.Report("v3-32", 32, 4, {"train": WITH_HOST}).to_json())
