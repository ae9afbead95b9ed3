"""Virtual environments beside the development one: what they do not install themselves they borrow from it."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def checkout(to: Path) -> Path:
    """Copy what git would keep of this working tree, so that nothing that was built before is found."""
    sys.path.insert(0, str(ROOT))
    from tests.docs.check import checkout as copy

    copy(to)
    return to


def environment(folder: Path) -> Path:
    """Create an empty environment; return its Python."""
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


def borrow(python: Path) -> None:
    """Let an environment see the packages of the Python that runs this, after its own.

    An editable install there is not seen, since Python reads ``.pth`` files only in the environment's own folder.
    """
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    borrowed = [entry for entry in sys.path if Path(entry).name == "site-packages"]
    Path(own, "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")


def install(python: Path, *arguments: str) -> None:
    """Install into an environment with this Python's pip."""
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *arguments], check=True)
