import threading
import types

import numpy as np
import pytest

from retinanet_tpu import errors, structures
from retinanet_tpu.serving import artifacts, batching


def numbered(sizes):
    """Returns images of these sizes; each pixel is the image's id."""
    return [(i, np.full([*size, 3], i, np.uint8)) for i, size in enumerate(sizes)]


def check(batches, sizes):
    """Compares batches with what went in; returns their ids."""
    for batch in batches:
        for image_id, picture in zip(batch.ids, batch.pictures, strict=True):
            assert picture.shape == (*sizes[image_id], 3)
            assert (picture == image_id).all()
    ids = [batch.ids for batch in batches]
    assert sorted(i for batch in ids for i in batch) == list(range(len(sizes)))
    return ids


def test_pictures_of_equal_size_share_a_batch_under_their_own_ids():
    sizes = [(3, 4), (4, 3), (3, 4), (3, 4), (4, 3), (3, 4), (5, 5)]
    batches = list(batching.by_size(numbered(sizes), 2))
    assert check(batches, sizes) == [(0, 2), (1, 4), (3, 5), (6,)]


def test_only_a_few_batches_wait_however_many_sizes_there_are():
    sizes = [(1 + i % 50, 1 + i // 50) for i in range(200)]
    held, most = 0, 0

    def counted():
        nonlocal held, most
        for item in numbered(sizes):
            held, most = held + 1, max(most, held + 1)
            yield item

    batches = []
    for batch in batching.by_size(counted(), 8):
        held -= len(batch.ids)
        batches.append(batch)
    check(batches, sizes)
    assert most <= 4 * 8


def test_large_pictures_make_smaller_batches(monkeypatch):
    monkeypatch.setattr(batching, "_MAX_PIXELS", 100)
    sizes = [(5, 10)] * 4 + [(20, 20)] * 2 + [(1, 1)] * 4
    ids = check(list(batching.by_size(numbered(sizes), 4)), sizes)
    assert ids == [(0, 1), (2, 3), (4,), (5,), (6, 7, 8, 9)]


def test_work_ahead_comes_in_order_and_is_done_in_threads():
    has_second_begun = threading.Event()

    def work(item):
        if item == 1:
            has_second_begun.set()
        # The first ends only if the second is worked on at once.
        assert item != 0 or has_second_begun.wait(timeout=30)
        return item * 10

    assert list(batching.ahead(work, iter(range(20)))) == list(range(0, 200, 10))


def test_work_ahead_stays_a_few_items_ahead():
    taken = []
    results = batching.ahead(
        lambda item: item, (taken.append(i) or i for i in range(99))
    )
    next(results)
    assert 1 < len(taken) < 20
    results.close()


def test_error_of_work_ahead_comes_out():
    def work(item):
        if item == 5:
            raise ValueError("five")
        return item

    results = batching.ahead(work, range(50))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)


def test_everything_is_detected_once_and_counted(caplog):
    def detect(pictures):
        ids = pictures[:, 0, 0, 0].astype(np.int32)
        empty = np.zeros([len(ids), 1])
        return structures.Detections(empty[..., None], empty, ids[:, None], ids)

    artifact = artifacts.Artifact("", "ONNX", None, detect)
    sizes = [(2 + i % 3, 2) for i in range(10)]
    meter = batching.Meter("test", 10)
    assert meter.model_rate == 0
    found = list(batching.detect(artifact, numbered(sizes), batch_size=3, meter=meter))
    check([batch for batch, _ in found], sizes)
    for batch, detections in found:
        assert batch.ids == tuple(detections.num_detections)
    assert meter.num_pictures == 10 and "10/10 images" in str(meter)


def test_images_that_the_model_refuses_are_skipped_or_named():
    def detect(pictures):
        if pictures.shape[1] == 3:
            raise errors.UserError("too large")
        return pictures

    artifact = artifacts.Artifact("", "ONNX", None, detect)
    skipped = []

    def run(**options):
        meter, images = batching.Meter("test", 4), numbered([(2, 2), (3, 2)] * 2)
        found = batching.detect(artifact, images, batch_size=9, meter=meter, **options)
        return [batch.ids for batch, _ in found], meter.num_pictures

    skip = lambda batch, error: skipped.append((batch.ids, str(error)))  # noqa: E731
    assert run(skip_fn=skip) == ([(0, 2)], 2)
    assert skipped == [((1, 3), "too large")]
    with pytest.raises(errors.UserError, match="Image ids 1, 3: too large"):
        run()


def test_model_rate_leaves_out_the_first_batch_if_there_are_more(monkeypatch):
    seconds = iter([100.0, 104.0])
    clock = types.SimpleNamespace(perf_counter=lambda: next(seconds))
    monkeypatch.setattr(batching, "time", clock)
    meter = batching.Meter("test", 4)
    meter.add(1, 2.0)
    assert meter.model_rate == 0.5
    meter.add(3, 1.0)
    assert meter.model_rate == 3.0
    assert meter.rate == 1.0


@pytest.mark.parametrize(("total", "most"), [(3, 3), (10, 10), (1000, 11)])
def test_log_has_a_line_for_each_of_a_few_pictures_and_not_of_many(
    total, most, monkeypatch
):
    lines = []
    monkeypatch.setattr(batching.logging, "info", lambda *args: lines.append(args))
    meter = batching.Meter("test", total)
    for _ in range(total):
        meter.add(1, 0.1)
    assert min(total, 10) <= len(lines) <= most
