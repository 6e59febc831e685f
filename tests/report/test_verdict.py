"""The verdict follows the numbers, by the thresholds that docs/report.md tells."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cryodrgn_metric.report.verdict import THRESHOLDS, judge
from cryodrgn_metric.report.wording import WORDINGS

DOCS = Path(__file__).parents[2] / "docs" / "report.md"


def results_of(
    stress=0.1,
    error=0.01,
    share=0.01,
    score=0.5,
    delta=0.3,
    dimension=2,
    islands=2,
    outside=0.01,
    distance="so3",
    motion=1,
    is_amortized=True,
    flow=None,
):
    """What the verdict reads of a run's results, with these numbers in it."""
    spreads = 5.0 ** -np.arange(dimension)
    return SimpleNamespace(
        fidelity={
            "z": {"spearman": 0.5},
            "z_metric": {"spearman": 0.95, "stress1_unscaled": stress},
            "h_psi": {"median_relative_error": error},
        },
        summary={
            "rotation": {
                "share": share,
                "median_angle_in_degrees": 12.0,
                "drift": {"score": score, "reason": ""},
            },
            "reach": {"outside_share": outside},
        },
        dimension=dimension,
        is_amortized=is_amortized,
        flow=flow,
        relative_distance=delta,
        wording=WORDINGS[distance],
        intrinsic={"dimension": motion, "interval": [1, 2]},
        densest=np.arange(-1, islands),
        components=(None, spreads**2 / (spreads**2).sum()),
    )


def grades(**numbers):
    return [judgement.grade for judgement in judge(results_of(**numbers))]


def sentences(**numbers):
    return [judgement.sentence for judgement in judge(results_of(**numbers))]


@pytest.mark.parametrize(
    ("name", "argument", "place"),
    [
        ("stress-1 of z'", "stress", 0),
        ("median error of h_psi", "error", 0),
        ("share of rotation", "share", 1),
        ("median Delta / |V|", "delta", 2),
        ("outside the landmarks' reach", "outside", 2),
    ],
)
def test_each_number_is_judged_by_its_thresholds(name, argument, place):
    good, fair = THRESHOLDS[name]
    worse = 1.001 if good < fair else 0.999
    found = [grades(**{argument: value})[place] for value in (good, good * worse, fair * worse)]
    assert found == ["good", "fair", "poor"]


def test_carried_mass_is_judged_by_the_radius_of_gyration():
    good, fair = THRESHOLDS["median Delta / Rg"]
    numbers = {"distance": "transport", "outside": 0.0}
    found = [grades(delta=value, **numbers)[2] for value in (good, 0.999 * good, 0.999 * fair)]
    assert found == ["good", "fair", "poor"]
    text = sentences(delta=0.034, distance="transport")[2]
    assert "median of 3.4 % of their radius of gyration; the motion has" in text


def test_the_worse_of_stress_and_error_counts():
    assert grades(stress=0.1, error=0.5)[0] == grades(stress=0.5, error=0.01)[0] == "poor"


def test_advice_names_what_is_to_blame():
    assert "try --dim 3" in sentences(stress=0.2)[0]
    assert "more --landmarks" in sentences(stress=0.2, error=0.15)[0]
    assert "try" not in sentences()[0]
    assert "without --no-amortization" in sentences(stress=0.2, is_amortized=False)[0]
    # a flow in all dimensions of z has no more to give
    assert "--dim" not in sentences(stress=0.2, flow={"variance_shares": [0.7, 0.3]})[0]
    assert "try --dim 3" in sentences(stress=0.2, flow={"variance_shares": [0.7, 0.2, 0.1]})[0]


def test_sentences_hold_the_numbers():
    trust, rotation, motion = sentences(share=0.55, score=0.98, delta=0.48, outside=0.034)
    assert "differ from the measured Δ by 10 %" in trust and "0.95 (z: 0.50)" in trust
    assert "55 % of the squared distance" in rotation and "z predicts 98 %" in rotation
    assert "median of 48 %" in motion and "two dense islands" not in motion
    assert "2 dense islands; 3.4 % of them" in motion
    assert "takes 1 of the 2 dimensions" in motion  # the first holds 96 %


def test_without_a_score_of_pose_drift_nothing_is_said_of_it():
    assert "predicts" not in sentences(score=None)[1]


def test_what_is_undefined_is_said_and_poor():
    trust, rotation, _ = judge(results_of(stress=None, error=None, share=None, delta=0.0))
    assert trust.grade == "poor" and "undefined" in trust.sentence
    assert "all alike" in rotation.sentence


def test_volumes_that_hardly_differ_are_not_interpreted():
    text = sentences(delta=0.02)[2]
    assert "hardly differ" in text and "2.0 %" in text and "islands" not in text


def test_every_sentence_is_one():
    for numbers in ({}, {"share": 0.5, "stress": 0.5}, {"delta": 0.01, "error": 0.3}):
        for text in sentences(**numbers):
            assert text.endswith(".") and not re.search(r"\. [A-Z]", text), text


def test_the_page_on_reading_it_tells_the_same_thresholds():
    text = DOCS.read_text().replace("\\|", "|")
    for name, (good, fair) in THRESHOLDS.items():
        assert re.search(rf"\| {re.escape(name)} \| {good:g} \| {fair:g} \|", text), name
