"""The site has every guide, study and public name; `make site` builds it."""

import importlib.util
import re

import pytest
import yaml

import lrbench_pl
from tests.docs.compose import ROOT


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_an_entry(hooks):
    entries = [name for page in hooks.api().values() for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]
    assert len(set(entries)) == len(entries)
    public = set(lrbench_pl.__all__) - {"__version__", "policies"}
    assert public <= {entry.removeprefix("lrbench_pl.") for entry in entries}
    assert {f"lrbench_pl.policies.{name}" for name in lrbench_pl.policies.__all__ if not name.isupper()} <= set(entries)


def test_a_public_name_without_a_page_is_refused(hooks, monkeypatch):
    monkeypatch.setattr(hooks, "API", [page for page in hooks.API if page[0] != "analysis"])
    with pytest.raises(ValueError, match="no page of the API has RunResult, curves, load_runs, rank"):
        hooks.api()


def test_a_module_without_public_names_is_refused(hooks):
    with pytest.raises(ValueError, match="expected __all__"):
        hooks.public("lrbench_pl.verdict")


def test_every_guide_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(text[text.index("\nnav:") :])["nav"]
    listed = set(re.findall(r"docs/[\w.-]+\.md", str(nav)))
    guides = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert len(guides) > 5
    assert guides | {"docs/notebook.ipynb.md"} == listed


def test_a_link_to_the_notebook_leads_to_its_page(hooks):
    assert hooks.on_page_markdown("[x](notebook.ipynb)", None, None, None) == "[x](notebook.ipynb.md)"
