"""How a program imports what trains."""

import gc
import sys

import pytest

from lrbench_pl.runs import imports


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_while_it_is_imported_and_the_program_s_choice_returns(monkeypatch, tmp_path, enabled):
    (tmp_path / "large_package.py").write_text("import gc\nwas_enabled = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "_RUN", "large_package")
    monkeypatch.setattr(imports.atexit, "register", lambda function: None)
    if not enabled:
        gc.disable()
    try:
        assert imports.import_run().was_enabled is False
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() > 0
        gc.unfreeze()
        assert imports.import_run() is sys.modules["large_package"]
        assert gc.get_freeze_count() == 0  # what was made since may be garbage
    finally:
        gc.enable()
        sys.modules.pop("large_package", None)
