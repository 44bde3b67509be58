import concurrent.futures

import pytest

from retinanet_tpu import look_ahead


@pytest.fixture(name="workers")
def _workers():
    with concurrent.futures.ThreadPoolExecutor(2) as workers:
        yield workers


def test_results_have_the_order_of_the_items(workers):
    results = look_ahead.map_ordered(workers, str, range(20), ahead=3)
    assert list(results) == [str(i) for i in range(20)]


def test_no_more_items_are_read_than_the_limit(workers):
    items = iter(range(20))
    results = look_ahead.map_ordered(workers, str, items, ahead=3)
    assert [next(results), next(results)] == ["0", "1"]
    assert next(items) == 5


def test_an_exception_is_raised_in_the_place_of_its_result(workers):
    results = look_ahead.map_ordered(workers, lambda i: 1 // i, [1, 0, 1], ahead=5)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
