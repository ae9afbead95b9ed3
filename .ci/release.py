"""Build the sdist and the wheel of this commit into dist/ and check them. Nothing is uploaded.

    python .ci/release.py [--tag v1.2.0] [--notes FILE]

The version is that of the git tag, so an untagged commit builds a development version. A release needs its section in
CHANGELOG.md, ``## [1.2.0] - 2026-01-31``; ``--notes`` writes that section to a file. ``--tag`` is the tag that the
version has to match.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
_RELEASE = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?")


def version_of(files: list[Path]) -> str:
    """Return the version of one sdist and one wheel.

    Raises:
        ValueError: If there are other files, or their versions differ.
    """
    found = {}
    for path in files:
        name = re.fullmatch(r"lrbench_pl-([^-]+)(\.tar\.gz|-py3-none-any\.whl)", path.name)
        if name is None:
            raise ValueError(f"expected an sdist and a wheel of lrbench_pl, got {path.name}")
        found[name[2]] = name[1]
    if len(found) != 2 or len(set(found.values())) != 1:
        raise ValueError(f"expected one sdist and one wheel of one version, got {', '.join(p.name for p in files)}")
    return found[".tar.gz"]


def notes(changelog: str, version: str) -> str:
    """Return the section of a version in a changelog, or the unreleased changes for a development version.

    Raises:
        ValueError: If the section is missing, has no date, or is empty.
    """
    if not _RELEASE.fullmatch(version):
        version, heading = "Unreleased", r"## \[Unreleased\]"
    else:
        heading = rf"## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}"
    found = re.search(rf"^{heading}\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(
            f"CHANGELOG.md: expected a section '## [{version}] - YYYY-MM-DD', found none; rename [Unreleased]"
            if version != "Unreleased"
            else "CHANGELOG.md: expected a section '## [Unreleased]', found none"
        )
    if not found[1].strip() and version != "Unreleased":
        raise ValueError(f"CHANGELOG.md: the section [{version}] is empty; move the changes of [Unreleased] there")
    return found[1].strip() + "\n"


def main() -> int:
    """Build and check."""
    parser = argparse.ArgumentParser(description="Build and check a release; upload nothing.")
    parser.add_argument("--tag", help="tag that the version has to match")
    parser.add_argument("--notes", type=Path, help="file for the section of the changelog")
    arguments = parser.parse_args()
    shutil.rmtree(DIST, ignore_errors=True)
    python = [sys.executable, "-m"]
    built = subprocess.run([*python, "build", "--outdir", str(DIST), str(ROOT)], capture_output=True, text=True)
    if built.returncode != 0:
        print(built.stdout, built.stderr, sep="\n", file=sys.stderr)
        return 1
    files = sorted(DIST.iterdir())
    names = list(map(str, files))
    try:
        version = version_of(files)
        if arguments.tag not in (None, f"v{version}"):
            raise ValueError(
                f"expected version {arguments.tag.removeprefix('v')}, got {version}; is the commit tagged?"
            )
        section = notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    wheel = next(name for name in names if name.endswith(".whl"))
    for check in (["twine", "check", "--strict", *names], ["check_wheel_contents", wheel]):
        if subprocess.run([*python, *check], check=False).returncode != 0:
            return 1
    if arguments.notes is not None:
        arguments.notes.write_text(section, encoding="utf-8")
    for path in files:
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1024:.0f} KiB")
    kind = "release" if _RELEASE.fullmatch(version) else "development version"
    print(f"{kind} {version}, {len(section.splitlines())} lines of changes; nothing was uploaded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
