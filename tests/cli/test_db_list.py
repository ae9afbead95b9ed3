"""``lrbench db list`` in each of its formats."""

import csv
import io
import json

import pytest

from lrbench_pl.policies import Polynomial, to_config
from lrbench_pl.selection.database import PolicyDatabase
from lrbench_pl.selection.records import stored_run
from tests.cli.test_cli import call

ROW = {
    "status": "reached",
    "steps_run": 300,
    "max_steps": 1000,
    "batch_size": 64,
    "dataset": "digits",
    "model": "mlp",
    "optimizer": "momentum",
    "target": 0.95,
    "monitor": "val/accuracy",
    "mode": "max",
    "best_value": 0.96,
}
LOSS = {"monitor": "val/loss", "mode": "min", "target": 0.1, "status": "missed", "best_value": 0.4}


@pytest.fixture
def db(tmp_path):
    """Two policies, three seeds each: ``cos`` is sooner; and one workload more, where only losses tell them apart."""
    with PolicyDatabase(tmp_path / "runs.db", create=True) as database:
        for policy, steps, loss, lr in (("tri", 300, 0.4, 0.1), ("cos", 200, 0.3, 0.2)):
            for seed in range(3):
                row = {**ROW, "policy": policy, "lr": lr, "seed": seed}
                reached = {**row, "run_id": f"{policy}{seed}", "steps_to_target": steps}
                missed = {**row, **LOSS, "run_id": f"{policy}{seed}-loss", "best_value": loss}
                policy_of = to_config(Polynomial(lr, 1000))
                database.add([stored_run(reached, policy_of), stored_run(missed, policy_of)])
    return tmp_path / "runs.db"


def test_the_table_has_a_section_for_each_workload(db, monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "db", "list", "--db", db)
    assert code == 0
    assert "digits, mlp, momentum, batch 64: val/accuracy 0.95 within 1000 steps" in out
    assert "digits, mlp, momentum, batch 64: val/loss 0.1 within 1000 steps" in out
    for section in out.split("digits, ")[1:]:
        assert section.index("cos") < section.index("tri")  # of losses, the smaller one is better
    assert "12 runs" in err


@pytest.mark.parametrize("form", ["csv", "json", "markdown"])
def test_other_formats_have_the_same_policies(db, monkeypatch, capsys, form):
    code, out, _ = call(monkeypatch, capsys, "db", "list", "--db", db, "--format", form)
    assert code == 0
    if form == "markdown":
        rows = [line.strip("| ").split(" | ") for line in out.splitlines()]
        listed = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
        assert [row["policy"] for row in listed] == ["cos", "tri"] * 2
        return
    listed = json.loads(out) if form == "json" else list(csv.DictReader(io.StringIO(out)))
    assert [(row["monitor"], row["policy"], int(row["rank"])) for row in listed] == [
        ("val/loss", "cos", 1),
        ("val/loss", "tri", 2),
        ("val/accuracy", "cos", 1),
        ("val/accuracy", "tri", 2),
    ]
