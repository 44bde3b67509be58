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
    """Compares batches with the images of `numbered`; returns their ids."""
    for batch in batches:
        for image_id, image in zip(batch.ids, batch.images, strict=True):
            assert image.shape == (*sizes[image_id], 3)
            assert (image == image_id).all()
    ids = [batch.ids for batch in batches]
    assert sorted(i for batch in ids for i in batch) == list(range(len(sizes)))
    return ids


def test_images_of_equal_size_share_a_batch_with_their_ids():
    sizes = [(3, 4), (4, 3), (3, 4), (3, 4), (4, 3), (3, 4), (5, 5)]
    batches = list(batching.batch_by_size(numbered(sizes), 2))
    assert check(batches, sizes) == [(0, 2), (1, 4), (3, 5), (6,)]


def test_only_a_few_batches_wait_for_any_number_of_sizes():
    sizes = [(1 + i % 50, 1 + i // 50) for i in range(200)]
    num_held, most = 0, 0

    def counted():
        nonlocal num_held, most
        for item in numbered(sizes):
            num_held += 1
            most = max(most, num_held)
            yield item

    batches = []
    for batch in batching.batch_by_size(counted(), 8):
        num_held -= len(batch.ids)
        batches.append(batch)
    check(batches, sizes)
    assert most <= 4 * 8


def test_large_images_have_smaller_batches(monkeypatch):
    monkeypatch.setattr(batching, "MAX_PIXELS", 100)
    sizes = [(5, 10)] * 4 + [(20, 20)] * 2 + [(1, 1)] * 4
    ids = check(list(batching.batch_by_size(numbered(sizes), 4)), sizes)
    assert ids == [(0, 1), (2, 3), (4,), (5,), (6, 7, 8, 9)]


def test_mapping_in_threads_keeps_the_order_and_runs_in_parallel():
    has_second_begun = threading.Event()

    def work(item):
        if item == 1:
            has_second_begun.set()
        # The first call ends only if the second runs at the same time.
        assert item != 0 or has_second_begun.wait(timeout=30)
        return item * 10

    assert list(batching.map_in_threads(work, iter(range(20)))) == list(
        range(0, 200, 10)
    )


def test_mapping_in_threads_reads_a_few_items_ahead():
    taken = []
    results = batching.map_in_threads(
        lambda item: item, (taken.append(i) or i for i in range(99))
    )
    next(results)
    assert 1 < len(taken) < 20
    results.close()


def test_mapping_in_threads_raises_the_error_of_an_item():
    def work(item):
        if item == 5:
            raise ValueError("five")
        return item

    results = batching.map_in_threads(work, range(50))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)


def test_every_image_is_detected_once_and_counted(caplog):
    def detect(images):
        ids = images[:, 0, 0, 0].astype(np.int32)
        empty = np.zeros([len(ids), 1])
        return structures.Detections(empty[..., None], empty, ids[:, None], ids)

    artifact = artifacts.Artifact("", "ONNX", None, detect)
    sizes = [(2 + i % 3, 2) for i in range(10)]
    meter = batching.Meter("test", 10)
    assert meter.model_rate == 0
    results = list(
        batching.detect_batches(artifact, numbered(sizes), batch_size=3, meter=meter)
    )
    check([batch for batch, _ in results], sizes)
    for batch, detections in results:
        assert batch.ids == tuple(detections.num_detections)
    assert meter.num_images == 10 and "10/10 images" in str(meter)


def test_images_that_the_model_rejects_are_skipped_or_raise_with_their_ids():
    def detect(images):
        if images.shape[1] == 3:
            raise errors.UserError("too large")
        return images

    artifact = artifacts.Artifact("", "ONNX", None, detect)
    skipped = []

    def run(**options):
        meter, images = batching.Meter("test", 4), numbered([(2, 2), (3, 2)] * 2)
        results = batching.detect_batches(
            artifact, images, batch_size=9, meter=meter, **options
        )
        return [batch.ids for batch, _ in results], meter.num_images

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
def test_log_has_about_ten_lines_for_any_number_of_images(total, most, monkeypatch):
    lines = []
    monkeypatch.setattr(batching.logging, "info", lambda *args: lines.append(args))
    meter = batching.Meter("test", total)
    for _ in range(total):
        meter.add(1, 0.1)
    assert min(total, 10) <= len(lines) <= most


def test_frames_of_an_unknown_number_are_counted(monkeypatch):
    lines = []
    monkeypatch.setattr(batching.logging, "info", lambda *args: lines.append(args))
    meter = batching.Meter("test", None, unit="frames")
    for _ in range(250):
        meter.add(1, 0.1)
    assert len(lines) == 2 and str(meter).startswith("250 frames | ")
    assert "frames/s" in str(meter)
