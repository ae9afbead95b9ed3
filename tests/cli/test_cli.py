"""The command ``lrbench``."""

import csv
import json
import subprocess
import sys

import pytest

from lrbench_pl import cli
from tests.analysis.test_history import run
from tests.analysis.test_ranking import write


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["lrbench", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code or 0
    output = capsys.readouterr()
    return code, output.out, output.err


def test_rank_prints_the_table_and_notes_what_is_missing(tmp_path, monkeypatch, capsys):
    write(tmp_path, "tri", 240, policy_id="x")
    write(tmp_path, "tri2", 260, policy_id="x")
    write(tmp_path, "cos", None, status="failed", message="disk full", seed=3)
    (write(tmp_path, "fix", 100) / "result.json").write_text("{")
    code, out, err = call(monkeypatch, capsys, "rank", tmp_path)
    assert code == 0
    assert [line.split()[2] for line in out.splitlines() if "/" in line] == ["tri", "tri2", "cos"]
    assert "3 runs, 1 failed, 1 skipped; steps to 0.97" in err
    assert f"failed: cos (seed 3) in {tmp_path}/2: disk full" in err
    assert f"skipped: {tmp_path}/3: not complete JSON" in err
    assert "the same policy over this budget: tri, tri2" in err


def test_machine_readable_formats_are_alone_on_standard_output(tmp_path, monkeypatch, capsys):
    write(tmp_path, "tri", 240)
    assert json.loads(call(monkeypatch, capsys, "rank", tmp_path, "--format", "json")[1])[0]["policy"] == "tri"
    out = call(monkeypatch, capsys, "rank", tmp_path, "--format", "csv", "--by", "optimizer, policy")[1]
    assert out.startswith("rank,rank_low,rank_high,tier,optimizer,policy,runs,reached")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rank", "nowhere"], "error: nowhere: no such folder; expected the folder of a run or of a sweep\n"),
        (["rank", ".", "--format", "xml"], "error: --format must be table, csv, json or markdown, got 'xml'\n"),
        (
            ["rank", "."],
            "error: .: no run with a readable result.json (none found); run a sweep first, see README.md\n",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, capsys, *arguments) == (2, "", message)


def test_rank_at_another_target_against_a_baseline(tmp_path, monkeypatch, capsys):
    for policy, steps in (("fix", 40), ("tri", 20)):
        for seed in range(5):
            run(tmp_path, policy, 40, seed=seed, checks=[(steps, 0.93), (40, 0.96)])
    code, out, err = call(
        monkeypatch, capsys, "rank", tmp_path, "--target", 0.92, "--baseline", "fix", "--format", "csv"
    )  # fmt: skip
    rows = list(csv.DictReader(out.splitlines()))
    assert code == 0
    assert [(row["policy"], row["median_steps"], row["speed_up"]) for row in rows] == [
        ("tri", "20.0", "2.0"),
        ("fix", "40.0", "1.0"),
    ]
    assert "10 runs; steps to 0.92" in err
    assert call(monkeypatch, capsys, "rank", tmp_path, "--metric", "speed")[::2] == (
        2,
        "error: --metric must be cost, utility or robustness, got 'speed'\n",
    )


@pytest.mark.slow
def test_the_module_is_the_command(tmp_path):
    write(tmp_path, "tri", 240)
    done = subprocess.run(
        [sys.executable, "-m", "lrbench_pl", "rank", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "tri" in done.stdout


def test_the_command_line_needs_no_torch():
    code = "import sys, lrbench_pl.cli, lrbench_pl.analysis.ranking; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
