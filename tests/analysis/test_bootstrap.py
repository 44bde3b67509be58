import numpy as np
import pytest

import analysis_cases
from retinanet_tpu.analysis import arrays, average_precision, bootstrap, matching

CASES = {
    "mixed": {},
    "more than 100 of a class": {"num_detections": 260, "num_classes": 2},
    "many classes": {"num_classes": 12},
}


def without_ties(seed, **settings):
    """Returns a case of which all scores differ.

    Equal scores of copies of an image would be in another order.
    """
    truth, found = analysis_cases.random_case(seed, **settings)
    rng = np.random.default_rng(seed)
    distinct = [
        each._replace(
            scores=0.9 * each.scores + 0.05 * rng.uniform(size=each.scores.shape)
        )
        for each in found
    ]
    return truth, distinct


def prepared(truth, found):
    data = arrays.collect(truth, found)
    return data, matching.match(data)


def measured(truth, found):
    """Returns AP and AP50 by the code that is compared with pycocotools."""
    metrics = average_precision.metrics(*prepared(truth, found))
    return [metrics["AP"], metrics["AP50"]]


def drawn(truth, found, weights):
    """Returns annotations and detections in which images are repeated."""
    found_in = {each.image_id: each for each in found}
    objects, copies = [], []
    images = np.repeat(sorted(truth.imgs), weights).tolist()
    for number, image in enumerate(images):
        objects += [
            (number, a["category_id"], a["bbox"], a["iscrowd"])
            for a in truth.imgToAnns.get(image, [])
        ]
        copies.append(found_in[image]._replace(image_id=number))
    names = [truth.cats[i]["name"] for i in sorted(truth.cats)]
    annotated = analysis_cases.truth(objects, names=names, num_images=len(images))
    return annotated, copies


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_ap_of_drawn_images_is_that_of_repeated_images(name, seed):
    truth, found = without_ties(seed, **CASES[name])
    resampled = bootstrap.ResampledAp(*prepared(truth, found))
    num_images = len(truth.imgs)
    assert resampled(np.ones(num_images, int)) == pytest.approx(measured(truth, found))
    rng = np.random.default_rng(seed)
    for _ in range(4):
        images = rng.integers(0, num_images, num_images)
        weights = np.bincount(images, minlength=num_images)
        expected = measured(*drawn(truth, found, weights))
        assert resampled(weights) == pytest.approx(expected, abs=1e-12)


def test_without_drawn_objects_there_is_no_ap():
    box = [0, 0, 100, 100]
    truth = analysis_cases.truth([(0, 1, box, False)], names=["cat"], num_images=2)
    found = [analysis_cases.detections(0, (1, box, 0.9))]
    resampled = bootstrap.ResampledAp(*prepared(truth, found))
    assert np.isnan(resampled(np.array([0, 2]))).all()
    assert resampled(np.array([1, 1])).tolist() == [1, 1]
    nothing = bootstrap.ResampledAp(*prepared(truth, []))
    assert nothing(np.array([1, 1])).tolist() == [0, 0]
    # A quarter of the samples has no object; the differences of the others are -1.
    cases = [prepared(truth, found), prepared(truth, [])]
    ((ap, ap50),) = bootstrap.intervals(cases, num_samples=50)
    assert ap == ap50 == bootstrap.Interval(-1, -1)


def test_without_any_object_the_interval_is_zero():
    truth = analysis_cases.truth([], names=["cat"], num_images=2)
    cases = [prepared(truth, [])] * 2
    zero = bootstrap.Interval(0, 0)
    assert bootstrap.intervals(cases, num_samples=5) == [(zero, zero)]


def test_identical_evaluations_have_the_interval_zero():
    case = prepared(*analysis_cases.random_case(2))
    zero = bootstrap.Interval(0, 0)
    assert bootstrap.intervals([case] * 3, num_samples=30) == [(zero, zero)] * 2
    assert not zero.excludes_zero


def test_intervals_are_percentiles_of_the_differences_on_the_same_images():
    truth, found = without_ties(4, num_images=6, num_classes=3, num_detections=12)
    other = [each._replace(scores=each.scores[::-1]) for each in found]
    settings = {"num_samples": 20, "seed": 5}
    cases = [prepared(truth, found), prepared(truth, other)]
    ((ap, ap50),) = bootstrap.intervals(cases, **settings)
    rng = np.random.default_rng(5)
    num_images = len(truth.imgs)
    differences = []
    for images in rng.integers(0, num_images, (20, num_images)):
        weights = np.bincount(images, minlength=num_images)
        before = measured(*drawn(truth, found, weights))
        differences.append(measured(*drawn(truth, other, weights)) - np.array(before))
    expected = np.percentile(differences, [2.5, 97.5], axis=0).T
    np.testing.assert_allclose([ap, ap50], expected, atol=1e-12)
    assert bootstrap.intervals(cases, **settings) == [(ap, ap50)]


def test_an_evaluation_that_is_worse_in_every_image_has_a_negative_interval():
    truth, _ = analysis_cases.random_case(3, num_images=30)
    rows = {
        image: [(a["category_id"], a["bbox"], 0.9) for a in truth.imgToAnns[image]]
        for image in truth.imgs
    }
    perfect = [analysis_cases.detections(i, *mine) for i, mine in rows.items()]
    half = [analysis_cases.detections(i, *mine[::2]) for i, mine in rows.items()]
    cases = [prepared(truth, perfect), prepared(truth, half)]
    ((ap, ap50),) = bootstrap.intervals(cases, num_samples=100)
    assert ap.high < 0 and ap.excludes_zero and ap50.excludes_zero


def test_large_evaluations_have_fewer_samples():
    assert bootstrap.default_num_samples(0) == 1000
    assert bootstrap.default_num_samples(400_000) == 500
    assert bootstrap.default_num_samples(10_000_000) == 200
