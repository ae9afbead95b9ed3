"""A release has one version, that of its tag, and a section in the changelog."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lrbench_pl
from lrbench_pl import files

ROOT = Path(__file__).resolve().parent.parent
CHANGELOG = """# Changelog

## [Unreleased]

### Added

- To come.

## [1.2.0] - 2026-01-31

### Fixed

- A fault.

## [1.1.0]

- Undated.

## [1.0.0] - 2025-12-24

"""


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def paths(*names):
    return [Path("dist", name) for name in names]


def test_one_version_of_sdist_and_wheel(release):
    version = "1.2.1.dev3+g308e3fc"
    assert (
        release.version_of(paths(f"lrbench_pl-{version}-py3-none-any.whl", f"lrbench_pl-{version}.tar.gz")) == version
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lrbench_pl-1.0.tar.gz"], "expected one sdist and one wheel of one version, got lrbench_pl-1.0.tar.gz"),
        (["lrbench_pl-1.0.tar.gz", "lrbench_pl-1.1-py3-none-any.whl"], "of one version, got"),
        (["lrbench_pl-1.0-cp311-cp311-linux_x86_64.whl"], "expected an sdist and a wheel of lrbench_pl, got"),
        ([], "expected one sdist and one wheel"),
    ],
)
def test_other_files_are_refused(release, names, message):
    with pytest.raises(ValueError, match=message):
        release.version_of(paths(*names))


def test_the_notes_of_a_release_are_its_section(release):
    assert release.notes(CHANGELOG, "1.2.0") == "### Fixed\n\n- A fault.\n"


def test_a_development_version_has_the_unreleased_changes(release):
    assert release.notes(CHANGELOG, "1.2.1.dev3+g308e3fc") == "### Added\n\n- To come.\n"


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("1.3.0", r"expected a section '## \[1.3.0\] - YYYY-MM-DD', found none; rename \[Unreleased\]"),
        ("1.1.0", r"expected a section '## \[1.1.0\] - YYYY-MM-DD'"),
        ("1.0.0", r"the section \[1.0.0\] is empty; move the changes"),
    ],
)
def test_a_release_without_its_section_is_refused(release, version, message):
    with pytest.raises(ValueError, match=message):
        release.notes(CHANGELOG, version)


def test_the_changelog_has_unreleased_changes_or_a_release(release):
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert release.notes(text, "0.1.1.dev1")
    with pytest.raises(ValueError, match=r"expected a section '## \[Unreleased\]'"):
        release.notes("# Changelog\n", "0.1.1.dev1")


def test_the_version_is_that_of_the_metadata():
    installed = importlib.metadata.version("lrbench_pl")
    assert lrbench_pl.__version__ == files.version() == installed
    code = "import json, lrbench_pl; print(json.dumps([lrbench_pl.__version__, '__version__' in dir(lrbench_pl)]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [installed, True]


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["authors"] == [{"name": "The lrbench_pl developers"}]
    (paper,) = citation["references"]
    assert paper["doi"] == "10.1145/3570508"
    assert [author["family-names"] for author in paper["authors"]] == ["Wu", "Liu"]


def test_a_tag_builds_and_nothing_is_uploaded():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    assert workflow[True]["push"] == {"tags": ["v*"]}  # YAML reads the key `on` as a boolean
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step.get("run", step.get("uses", "")) for job in workflow["jobs"].values() for step in job["steps"]]
    assert any("make release" in step for step in steps)
    assert not [step for step in steps if "publish" in step or "twine upload" in step or "gh release" in step]
