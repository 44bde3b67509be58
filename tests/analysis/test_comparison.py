import numpy as np
import pytest

import analysis_cases
import analysis_pages
from retinanet_tpu import errors
from retinanet_tpu.analysis import (
    analyze,
    bootstrap,
    comparison,
    comparison_page,
    comparison_text,
)

HOSTILE = "<b>\"cat\" & 'dog'</script><script>alert(1)</script>"
BOX, FAR = [0, 0, 100, 100], [300, 300, 80, 80]


@pytest.fixture(scope="module")
def random_pair():
    truth, found = analysis_cases.random_case(6)
    rng = np.random.default_rng(0)
    other = [each._replace(scores=rng.permutation(each.scores)) for each in found]
    return truth, found, other


def small():
    """Returns annotations and two evaluations.

    Image 0 loses its object, image 1 gains one, image 2 gains a wrong detection more
    than image 0, and image 3 stays.
    """
    objects = [(i, 1 + i % 2, BOX, False) for i in range(4)]
    truth = analysis_cases.truth(objects, names=["cat", "dog"], num_images=4)
    right = [(1 + i % 2, BOX, 0.9) for i in range(4)]
    old = [analysis_cases.detections(i, right[i]) for i in (0, 2, 3)]
    wrong = [(1, FAR, 0.95), (2, FAR, 0.95)]
    new = [analysis_cases.detections(i, right[i]) for i in (1, 3)]
    new.append(analysis_cases.detections(2, right[2], *wrong))
    return truth, old, new


def compared_small(names=("old", "new"), **settings):
    truth, old, new = small()
    pair = dict(zip(names, (old, new), strict=True))
    return comparison.compare(truth, pair, num_samples=20, **settings)


def image_fn(image_id):
    if image_id == 2:
        return None
    return np.full([50, 60, 3], 90, np.uint8)


def written(folder, compared, **settings):
    path = folder / "page.html"
    settings = {"image_fn": image_fn} | settings
    comparison_page.write(str(path), compared, title="Comparison", **settings)
    return path


def test_each_evaluation_has_the_numbers_of_its_analysis(random_pair):
    truth, *pair = random_pair
    named = dict(zip("ab", pair, strict=True))
    compared = comparison.compare(truth, named, num_samples=5)
    for evaluation, found in zip(compared.evaluations, pair, strict=True):
        expected = analyze.analyze(truth, found)
        assert evaluation.metrics == expected.metrics
        assert evaluation.errors == expected.errors
        assert [c.ap for c in evaluation.classes] == [c.ap for c in expected.classes]
        by_id = {image.image_id: image for image in expected.images}
        assert [by_id[image.image_id] for image in evaluation.images] == list(
            evaluation.images
        )


def test_images_are_sorted_by_their_change():
    (difference,) = compared_small().others
    worse = [(each.before.image_id, each.gain) for each in difference.worse]
    better = [(each.before.image_id, each.gain) for each in difference.better]
    assert (worse, better) == ([(2, -2), (0, -1)], [(1, 1)])


def test_an_evaluation_compared_with_itself_differs_nowhere(random_pair):
    truth, found, _ = random_pair
    compared = comparison.compare(truth, {"a": found, "b": found}, num_samples=5)
    (difference,) = compared.others
    assert not difference.worse and not difference.better
    assert set(difference.intervals.values()) == {bootstrap.Interval(0, 0)}
    verdict = comparison_text.verdict(compared.baseline, difference)
    assert verdict == "“b” has the same AP as “a”, to three digits."


def test_the_table_has_values_differences_and_intervals(random_pair):
    truth, found, other = random_pair
    three = {"a": found, "b": other, "a path/" + 9 * "much longer/": found}
    compared = comparison.compare(truth, three, num_samples=5)
    heads, *lines = comparison_text.table(compared).splitlines()
    assert "…" in heads and heads.endswith("95 % confidence interval")
    row = lines[0].split()
    old, new = (each.metrics["AP"] for each in compared.evaluations[:2])
    assert row[:4] == ["AP", f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}"]
    ends = " ".join(f"{end:+.3f}" for end in compared.others[0].intervals["AP"])
    assert " ".join(row[4:7]).replace("to ", "") == ends
    assert row[7:] == [f"{old:.3f}", "0.000", "0.000", "to", "0.000"]
    assert "14 images, 5 bootstrap samples, seed 0" in lines[-1]


def test_the_page_shows_changed_images_side_by_side_and_loads_nothing(tmp_path):
    text = written(tmp_path, compared_small()).read_text("utf-8")
    analysis_pages.check_loads_nothing(text)
    read = analysis_pages.Reader(text)
    sections = [found["id"] for found in read.all("section")]
    assert sections == ["summary", "metrics", "errors", "classes", "images"]
    groups = [found["data-group"] for found in read.all("figure")]
    assert groups == ["worse", "worse", "better"]
    assert len(read.all("svg")) == 6
    # The pixels of the two images that can be read are embedded once.
    keys = [found["id"] for found in read.all("image")]
    assert len(keys) == 2
    uses = [found["href"] for found in read.all("use")]
    assert len(uses) == 3 and {f"#{key}" for key in keys} < set(uses)


def test_images_that_only_some_evaluations_cover_are_named(tmp_path):
    compared = compared_small()
    assert compared.coverage == {"old": 3, "new": 3}
    text = written(tmp_path, compared).read_text("utf-8")
    assert "“old” has detections for 3 of 4 images; the other images count" in text
    truth, old, new = small()
    everywhere = [*new, analysis_cases.detections(0)]
    pair = {"old": old, "new": everywhere}
    assert comparison.compare(truth, pair, num_samples=2).coverage == {"old": 3}
    # Both lack the same image.
    pair = {"old": old, "new": [*new[1:], analysis_cases.detections(0)]}
    assert comparison.compare(truth, pair, num_samples=2).coverage == {}


@pytest.mark.parametrize(
    "interval, meaning",
    [
        ((0.0004, 0.02), "is 0.000 to +0.020. It includes 0"),
        ((0.0006, 0.02), "is +0.001 to +0.020. It excludes 0"),
        ((-0.02, -0.0001), "is -0.020 to 0.000. It includes 0"),
        ((-0.02, 0.01), "is -0.020 to +0.010. It includes 0"),
    ],
)
def test_the_verdict_agrees_with_the_printed_interval(interval, meaning):
    compared = compared_small()
    (other,) = compared.others
    intervals = {"AP": bootstrap.Interval(*interval)}
    text = comparison_text.verdict(
        compared.baseline, other._replace(intervals=intervals)
    )
    assert f"the 95 % confidence interval {meaning}" in text


def test_the_verdict_names_the_largest_loss_and_gain():
    compared = compared_small()
    (other,) = compared.others
    classes = [
        each._replace(name=name, ap=each.ap + change)
        for each, name, change in zip(
            compared.baseline.classes, ("cat", "dog"), (-0.1, 0.2), strict=True
        )
    ]
    other = other._replace(evaluation=other.evaluation._replace(classes=classes))
    assert (
        "The class with the largest loss is cat (-0.100); the class with the largest "
        "gain is dog (+0.200)."
    ) in comparison_text.verdict(compared.baseline, other)


@pytest.mark.parametrize("is_first", [True, False])
def test_without_a_correct_detection_the_threshold_is_that_of_the_other(is_first):
    truth, old, _ = small()
    wrong = [(1, FAR, score) for score in (0.1, 0.2, 0.3, 0.95)]
    pair = [("right", old), ("wrong", [analysis_cases.detections(0, *wrong)])]
    compared = comparison.compare(truth, dict(pair[:: 1 if is_first else -1]))
    assert [each.threshold for each in compared.evaluations] == pytest.approx([0.9] * 2)
    images = {each.name: each.images for each in compared.evaluations}
    assert [box.score for box in images["wrong"][0].detections] == [0.95]


def test_objects_of_images_are_detected_or_not_detected(tmp_path):
    compared = compared_small()
    kinds = [box.kind for image in compared.baseline.images for box in image.objects]
    assert kinds == ["found", "not detected", "found", "found"]
    text = written(tmp_path, compared).read_text("utf-8")
    figures = text[text.index("id='images'") :]
    assert "1 not detected" in figures and "data-choose='not detected'" in figures
    assert "missed" not in figures.partition("<script")[0]


def test_classes_are_sorted_by_their_loss(tmp_path):
    text = written(tmp_path, compared_small()).read_text("utf-8")
    cells = [t for tag, t in analysis_pages.Reader(text).texts if tag == "td"]
    assert cells.index("cat") < cells.index("dog")
    swapped = compared_small(("new", "old"))
    baseline = swapped.others[0].evaluation
    other = swapped.others[0]._replace(evaluation=swapped.baseline)
    swapped = swapped._replace(baseline=baseline, others=[other])
    text = written(tmp_path, swapped).read_text("utf-8")
    cells = [t for tag, t in analysis_pages.Reader(text).texts if tag == "td"]
    assert cells.index("dog") < cells.index("cat")


def test_names_are_escaped_and_at_most_the_given_images_are_shown(tmp_path):
    compared = compared_small((HOSTILE, "x" + HOSTILE))
    text = written(tmp_path, compared, max_images=1).read_text("utf-8")
    read = analysis_pages.Reader(text)
    assert len(read.all("script")) == 1 and "alert(1)</script>" not in text
    assert len(read.all("figure")) == 2


def test_without_objects_of_a_class_or_changes_there_is_a_page(tmp_path):
    truth = analysis_cases.truth(
        [(0, 1, BOX, False)], names=["cat", "dog"], num_images=1
    )
    compared = comparison.compare(truth, {"a": [], "b": []}, num_samples=3)
    text = written(tmp_path, compared).read_text("utf-8")
    assert "No image got better or worse." in text and "nan" not in text.lower()


def test_detections_of_other_images_are_refused():
    truth, old, _ = small()
    other = [analysis_cases.detections(99, (1, BOX, 0.9))]
    with pytest.raises(errors.UserError, match="Image 99 is not one of the annotated"):
        comparison.compare(truth, {"a": old, "b": other})


@pytest.mark.slow
def test_a_browser_filters_the_images_without_errors_or_requests(tmp_path):
    path = written(tmp_path, compared_small())
    title = analysis_pages.title_in_browser(path, CLICKS)
    assert title == "2 of 3 images, 1 of 3 images, cat, dog, 0 requests"


CLICKS = """
const choose = (id, value) => {
  const select = document.getElementById(id);
  select.value = value;
  select.dispatchEvent(new Event("change"));
};
const count = () => document.getElementById("shot-count").textContent;
const first = () => document.querySelector("table.sortable tbody td").textContent;
choose("shot-group", "worse");
const counts = [count()];
document.querySelector("[data-choose=background]").click();
counts.push(count(), first());
document.querySelectorAll("table.sortable th button")[4].click();
counts.push(first());
const requests = performance.getEntriesByType("resource");
document.title = counts.join(", ") + ", " + requests.length + " requests";
"""
