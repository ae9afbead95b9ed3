"""How a program imports what trains."""

import gc
import sys
import warnings

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


@pytest.fixture
def heavy(monkeypatch, tmp_path):
    """A package that imports a module which nobody needs, and tells when its own code is executed."""
    (tmp_path / "heavy").mkdir()
    (tmp_path / "heavy" / "__init__.py").write_text(
        "from heavy.costly import *\nfrom heavy.cheap import half\nWHOLE = half * 2\n"
    )
    (tmp_path / "heavy" / "cheap.py").write_text("half = 21\n")
    (tmp_path / "heavy" / "costly.py").write_text("paid = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    finder = imports._LazyPackages({"heavy": {"half": imports._attribute("heavy.cheap", "half")}})
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "heavy"]:
        del sys.modules[name]


def test_a_lazy_package_is_executed_for_what_it_alone_defines(heavy):
    import heavy.cheap
    from heavy import half

    assert half == heavy.half == heavy.cheap.half == 21
    assert not hasattr(heavy, "__warningregistry__")  # as unittest asks of every module
    assert "heavy.costly" not in sys.modules
    assert heavy.WHOLE == 42
    assert heavy.paid
    assert type(heavy) is type(sys)
    with pytest.raises(AttributeError, match="no attribute 'third'"):
        heavy.third  # noqa: B018


def test_all_its_names_are_listed(heavy):
    import heavy

    assert {"WHOLE", "paid", "half"} <= set(dir(heavy))


def test_a_name_that_it_lacks_is_an_error(heavy):
    import heavy

    with pytest.raises(AttributeError, match="no attribute 'third'"):
        heavy.third  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'third'"):
        from heavy import third  # noqa: F401


def test_torchmetrics_has_all_its_names():
    import torchmetrics
    import torchmetrics.functional

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torchvision, scipy and transformers
        assert torchmetrics.Accuracy.__module__ == "torchmetrics.classification.accuracy"
        assert callable(torchmetrics.functional.accuracy)
    assert torchmetrics.Metric is torchmetrics.metric.Metric


def test_a_torchmetrics_that_cannot_be_imported_in_parts_is_imported_whole(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torchmetrics").mkdir()
    (tmp_path / "torchmetrics" / "__init__.py").write_text("moved = True\n")
    (tmp_path / "torchmetrics" / "utilities.py").write_text("from torchmetrics import moved\n")
    monkeypatch.syspath_prepend(tmp_path)
    imports.import_torchmetrics()
    assert "torchmetrics" not in sys.modules
    import torchmetrics

    assert torchmetrics.moved
    assert type(torchmetrics) is type(sys)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        del sys.modules[name]
