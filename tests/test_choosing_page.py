"""docs/choosing.md says what the committed studies found: no table is typed by hand."""

import re
from pathlib import Path

import pytest
from studies.page import MARKED, PAGE, load_studies, render
from studies.record import PICTURES

SCRIPTS = Path(__file__).with_name("studies")
STUDIES = load_studies()


def test_the_page_is_rendered_from_the_studies():
    page = PAGE.read_text(encoding="utf-8")
    assert render(page, STUDIES) == page, "PYTHONPATH=tests python -m studies.page"


def test_the_page_shows_every_study_and_its_figure():
    page = PAGE.read_text(encoding="utf-8")
    assert {match[2] for match in MARKED.finditer(page)} == set(STUDIES)
    shown = set(re.findall(r"\(images/choosing/(\w+)\.png\)", page))
    assert shown == set(STUDIES) == {path.stem for path in PICTURES.glob("*.png")}


@pytest.mark.parametrize("topic", sorted(STUDIES))
def test_every_study_can_be_made_again(topic):
    study = STUDIES[topic]
    assert study["command"] == f"PYTHONPATH=tests python -m studies.study_{topic}"
    assert (SCRIPTS / f"study_{topic}.py").is_file()
    assert study["rows"]
    assert {len(row) for row in study["rows"]} == {len(study["columns"])}


def test_a_table_holds_what_was_found():
    study = {
        "command": "a command",
        "columns": ["map", "stress-1", "steps"],
        "rows": [["flow", 0.12345, 1000], ["mlp", None, 500]],
        "facts": {"seeds": [0, 1], "minutes": 2.5},
        "commit": "0123",
        "date": "2026-01-01",
    }
    page = render("<!-- begin map -->\nold\n<!-- end map -->\n", {"map": study})
    assert "| flow | 0.123 | 1000 |\n| mlp | – | 500 |" in page and "old" not in page
    assert "`a command`, commit 0123, 2026-01-01; seeds 0, 1, minutes 2.5." in page
