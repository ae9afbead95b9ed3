"""The form of the documents: wrapped prose, an index that names every guide, a page that names every policy."""

import pytest

from tests.docs.blocks import documents
from tests.docs.compose import ROOT

PAGES = [*documents(ROOT), ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("experiments/**/README.md"))]


def long_lines(markdown):
    """Numbers of the lines of prose with more than 100 characters; blocks, tables and images may be wider."""
    found, inside = [], False
    for number, line in enumerate(markdown.splitlines(), 1):
        if line.startswith(("```", "<!-- from results.csv", "<!-- from curves.csv", "<!-- end")):
            inside = not inside
        elif not inside and len(line) > 100 and not line.startswith(("    ", "|", "![", "<!--")):
            found.append(number)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_wraps_at_100_columns(page):
    assert long_lines(page.read_text(encoding="utf-8")) == []


def test_a_long_line_is_found():
    wide = "x " * 60
    assert long_lines(f"short\n{wide}\n```\n{wide}\n```\n| {wide}\n    {wide}\n- {wide}") == [2, 8]


def test_the_index_names_every_guide():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    guides = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert len(guides) > 5
    assert [name for name in sorted(guides) if f"]({name}" not in index] == []


def test_the_page_of_the_policies_names_every_policy():
    page = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    names = sorted(path.stem for path in (ROOT / "conf" / "lr_policy").glob("*.yaml"))
    assert "triexp" in names
    assert [name for name in names if f"`{name}`" not in page] == []


def test_the_readme_is_read_in_two_minutes():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = [line for line in text.splitlines() if line and not line.startswith(("    ", "|", "![", "<!--"))]
    assert len(" ".join(prose).split()) < 500  # about 250 words a minute
