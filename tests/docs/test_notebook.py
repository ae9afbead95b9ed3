"""The notebook of the guide is executed from an empty folder, and is the guide's program."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import blocks

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

DOCS = Path(__file__).parents[2] / "docs"


def code_of(book):
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


def lines_of(cell):
    # a line may be split between two outputs, as the kernel happens to flush them
    return "".join(output.get("text", "") for output in cell.get("outputs", [])).splitlines()


def test_its_program_is_that_of_the_guide():
    book = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    guide = (DOCS / "notebook.md").read_text(encoding="utf-8")
    program = next(block.text for block in blocks(guide) if block.path == "sweep.py")
    for source in code_of(book)[:4]:
        assert source in program


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
def test_it_runs_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    book = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    shown = [lines_of(cell) for cell in book.cells]
    nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        f"{name}-seed{seed}" for name in ("constant", "linear") for seed in (0, 1, 2)
    ]
    trained = next(cell for cell in book.cells if cell.cell_type == "code" and "sweep(" in cell.source)
    assert [line.partition(":")[0] for line in lines_of(trained)] == [
        line.partition(":")[0] for line in shown[book.cells.index(trained)]
    ]
    assert all("finished before" in line for line in lines_of(book.cells[-1]))
