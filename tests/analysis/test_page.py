"""The page of an analysis, built from a synthetic one."""

import json

import numpy as np
import pytest

import analysis_pages
from retinanet_tpu.analysis import (
    page,
    page_charts,
    page_html,
    page_images,
    page_verdict,
    results,
)

HOSTILE = "<b>\"cat\" & 'dog'</script><script>alert(1)</script>"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
METRICS += ("AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
SECTIONS = ["summary", "metrics", "errors", "classes", "curves", "confusion"]
SECTIONS += ["groups", "calibration", "images", "confident", "labels"]


NO_CURVE = results.Curve(*np.zeros([3, 0]), num_objects=0)


def make_curve(size=30):
    thresholds = np.linspace(0.01, 0.99, size)
    num_correct = np.round(16 * (1 - thresholds)).astype(int)
    num_wrong = np.round(30 * (1 - thresholds) ** 2).astype(int)
    return results.Curve(thresholds, num_correct, num_wrong, num_objects=20)


def make_class(name, *, objects=20, detections=50, ap=0.4):
    if objects:
        falling = np.linspace(1, 0.2, 101)
        by_recall = np.stack([falling, falling**2])
    else:
        ap, by_recall = -1.0, np.full([2, 101], -1.0)
    curve = make_curve() if detections else NO_CURVE
    return results.ClassResult(name, objects, detections, ap, ap, ap, curve, by_recall)


def make_analysis(names=("cat", "dog"), *, num_images=4):
    box = results.ShownBox
    name, other = names[0], names[-1]
    images = [
        results.ImageResult(
            image_id=number,
            file_name=f"{number} {name}.jpg",
            height=60,
            width=80,
            f1=number / num_images,
            objects=[
                box((5, 5, 30, 30), name, None, "found", 0.8),
                box((5, 40, 20, 75), other, None, "not detected", 0.0),
            ],
            detections=[
                box((6, 5, 30, 32), name, 0.9, "correct", 0.8),
                box((40, 40, 58, 70), other, 0.5 + number / 100, "background", 0.0),
            ],
        )
        for number in range(num_images)
    ]
    counts = np.arange((len(names) + 1) ** 2).reshape(len(names) + 1, -1)
    counts[-1, -1] = 0
    return results.Analysis(
        metrics={key: 0.05 * i + 0.1 for i, key in enumerate(METRICS)} | {"APs": -1.0},
        all_classes=make_class("all"),
        classes=[make_class(n, ap=0.2 + 0.1 * i) for i, n in enumerate(names)],
        errors=[
            results.ErrorCost(kind, 3 * i, 0.01 * i)
            for i, kind in enumerate(results.ERROR_KINDS)
        ],
        confusion=results.Confusion(names, 0.3, counts),
        groups=[
            results.Group("size", f"small {name}", 30, 0.1, 0.2, 0.5),
            results.Group("size", "large", 20, 0.6, 0.7, 0.9),
        ],
        calibration=[
            results.CalibrationBin(i / 10, (i + 1) / 10, i / 10 + 0.05, i / 20, 10**i)
            for i in range(5)
        ],
        calibration_error=0.12,
        images=images,
        label_issues=[
            results.LabelIssue(i.image_id, "wrong class", i.detections[1], i.objects[1])
            for i in images[:2]
        ],
    )


def make_empty():
    nothing = make_class("all", objects=0, detections=0)
    return results.Analysis(
        metrics=dict.fromkeys(METRICS, -1.0),
        all_classes=nothing,
        classes=[nothing],
        errors=[results.ErrorCost(kind, 0, 0.0) for kind in results.ERROR_KINDS],
        confusion=results.Confusion(["all"], 0.0, np.zeros([2, 2], np.int64)),
        groups=[],
        calibration=[],
        calibration_error=-1.0,
        images=[],
        label_issues=[],
    )


def image_fn(image_id):
    if image_id == 1:
        return None
    return np.random.default_rng(image_id).integers(0, 255, [60, 80, 3], np.uint8)


def written(folder, analysis, **settings):
    path = folder / "page.html"
    page_html.write(str(path), page.html(analysis, title="The run", **settings))
    return path.read_text("utf-8")


def test_the_page_has_every_section_in_order(tmp_path):
    read = analysis_pages.Reader(written(tmp_path, make_analysis(), image_fn=image_fn))
    assert [found["id"] for found in read.all("section")] == SECTIONS
    links = [found["href"].removeprefix("#") for found in read.all("a")]
    assert links == SECTIONS[1:]


def test_the_page_loads_nothing(tmp_path):
    text = written(tmp_path, make_analysis(), image_fn=image_fn)
    analysis_pages.check_loads_nothing(text)


def test_hostile_names_are_escaped(tmp_path):
    text = written(
        tmp_path,
        make_analysis([HOSTILE, "x" + HOSTILE]),
        image_fn=image_fn,
        subtitle=HOSTILE,
        compared=[(HOSTILE, {})],
    )
    read = analysis_pages.Reader(text)
    # The data of the curves, and the page's own script.
    assert len(read.all("script")) == 2
    assert not [found for found in read.all("b") if found]
    assert '<b>"cat' not in text and "alert(1)</script>" not in text
    assert any(found.get("data-name") == HOSTILE for found in read.all("g"))
    assert (("td", HOSTILE)) in read.texts


def test_the_data_of_the_curves_are_those_of_the_classes(tmp_path):
    analysis = make_analysis()
    read = analysis_pages.Reader(written(tmp_path, analysis))
    (data,) = [t for tag, t in read.texts if tag == "script" and t.startswith("[{")]
    curves = json.loads(data)
    assert len(curves) == 1 + len(analysis.classes)
    cat, curve = curves[1], analysis.classes[0].curve
    assert cat["t"] == [round(1000 * t) for t in curve.thresholds]
    assert cat["best"] == round(1000 * curve.thresholds[curve.best])
    assert len(cat["p50"]) == len(cat["p75"]) == 101


def test_a_long_curve_keeps_its_best_threshold():
    curve = make_curve(5000)
    result = make_class("cat")._replace(curve=curve)
    assert curve.f1[result.curve.best] == curve.f1.max()
    kept = page_charts._kept_points(curve)
    assert len(kept) <= 102 and curve.best in kept and kept[-1] == 4999


def test_metrics_have_differences_and_dashes(tmp_path):
    analysis = make_analysis()
    previous = dict(analysis.metrics) | {"AP": 0.3, "AP50": analysis.metrics["AP50"]}
    text = written(tmp_path, analysis, compared=[("previous", previous)])
    assert "<td>0.300</td><td class='bad' data-value='-0.200000'>-0.200</td>" in text
    assert "<td class='same' data-value='0.000000'>0.000</td>" in text
    # APs is -1 in both.
    dash = page_verdict.DASH
    other = f"<td>{dash}</td><td class='same' data-value='0'>{dash}</td>"
    assert f"<td><b>{dash}</b></td>{other}" in text
    assert "-1.000" not in text


def test_an_empty_analysis_has_a_page(tmp_path):
    read = analysis_pages.Reader(written(tmp_path, make_empty(), image_fn=image_fn))
    assert [found["id"] for found in read.all("section")] == SECTIONS
    assert not read.all("image")
    assert any("nothing to measure" in text for _, text in read.texts)


def test_without_detections_the_verdict_says_so():
    analysis = make_analysis()
    whole = analysis.all_classes._replace(num_detections=0, curve=NO_CURVE)
    (sentence,) = page_verdict.sentences(analysis._replace(all_classes=whole))
    assert sentence.startswith("Nothing is detected, although 20 objects")


def test_the_verdict_names_the_largest_error_the_worst_class_and_the_scores():
    text = " ".join(page_verdict.sentences(make_analysis()))
    assert "missed errors" in text and "raise AP50 by 0.050" in text
    assert "worst class is cat with an AP of 0.200" in text
    assert "those by size differ most: AP is 0.100" in text
    assert "not calibrated" in text and "too high" in text


def test_scores_are_calibrated_if_those_above_the_threshold_are_too():
    analysis = make_analysis()._replace(calibration_error=0.01)
    assert "not calibrated, and mostly too high" in " ".join(
        page_verdict.sentences(analysis)
    )
    right = [each._replace(precision=each.mean_score) for each in analysis.calibration]
    text = " ".join(page_verdict.sentences(analysis._replace(calibration=right)))
    assert "Scores are calibrated" in text


def test_at_most_the_given_number_of_images_is_embedded(tmp_path):
    analysis = make_analysis(num_images=9)
    read = analysis_pages.Reader(
        written(tmp_path, analysis, image_fn=image_fn, max_images=3)
    )
    shots, *_ = read.all("div", id="shots")
    assert shots and len(read.all("figure")) == 2 + 3 + 3 + 2  # With two charts.
    assert len(read.all("image")) < 3 + 3 + 2  # One image has no pixels.


def test_the_page_of_many_classes_is_small_and_shows_pairs(tmp_path):
    names = [f"class {number}" for number in range(300)]
    text = written(tmp_path, make_analysis(names))
    assert "class='confusion'" not in text and "detected as" in text
    # 1,200 classes are four times as many; the limit is 15 MB.
    assert len(text) < 15e6 / 5


def test_a_crop_contains_its_box_and_stays_inside_of_the_image():
    image = make_analysis().images[0]._replace(height=300, width=500)
    for box in [(0, 0, 10, 10), (250, 480, 300, 500), (100, 0, 120, 500)]:
        top, left, bottom, right = page_images._frame([box], image)
        assert 0 <= top <= box[0] and box[2] <= bottom <= 300
        assert 0 <= left <= box[1] and box[3] <= right <= 500


@pytest.mark.slow
def test_a_browser_shows_the_page_without_errors_or_requests(tmp_path):
    path = tmp_path / "page.html"
    page_html.write(
        str(path), page.html(make_analysis(), title="The run", image_fn=image_fn)
    )
    title = analysis_pages.title_in_browser(path, CLICKS)
    assert title == "clicked: dog, 2 of 4 images, 0 requests"


CLICKS = """
document.querySelectorAll("table.sortable th button")[1].click();
const first = document.querySelector("table.sortable tbody td").textContent;
const choice = document.getElementById("curve-class");
choice.selectedIndex = 1;
choice.dispatchEvent(new Event("change"));
document.querySelector("[data-choose=background]").click();
const slider = document.getElementById("shot-score");
slider.value = "0.52";
slider.dispatchEvent(new Event("input"));
const requests = performance.getEntriesByType("resource");
document.title = "clicked: " + first + ", "
  + document.getElementById("shot-count").textContent
  + ", " + requests.length + " requests";
"""
