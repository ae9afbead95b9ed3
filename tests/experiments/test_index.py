"""experiments/README.md names all that is there."""

from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"


def test_the_index_names_every_study_and_benchmark():
    index = (EXPERIMENTS / "README.md").read_text()
    folders = {path.parent.name for path in EXPERIMENTS.glob("*/*") if path.is_file()} - {"benchmarks", "__pycache__"}
    assert "compare_with_reference" in folders
    for name in [*folders, *(path.name for path in (EXPERIMENTS / "benchmarks").glob("*.py"))]:
        assert f"| `{name}` |" in index
