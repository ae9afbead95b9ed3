"""Curves before any training."""

import builtins
import subprocess
import sys

import pytest

import lrbench_pl.runs.run  # noqa: F401 - Lightning sets environment variables when it is first imported
from lrbench_pl.cli.preview import Curve, curve, draw, equal_curves, planned_runs, write_png
from lrbench_pl.policies import table
from lrbench_pl.runs.config import build_policy, compose
from lrbench_pl.runs.options import UserError
from tests.cli.test_cli import call


def curves(*overrides):
    return [curve(run) for run in planned_runs(overrides)]


def test_the_curve_is_that_of_the_object_that_trains():
    (shown,) = curves("lr_policy=composite_tri", "max_steps=300", "optimizer=adam")
    cfg = compose(["lr_policy=composite_tri", "max_steps=300", "optimizer=adam"])
    assert list(shown.rates) == table(build_policy(cfg), 300)
    assert shown.name == "composite_tri"


@pytest.mark.slow
def test_a_run_is_named_by_what_tells_it_from_the_others():
    assert [run.name for run in planned_runs(["lr_policy=tri,cos", "optimizer=sgd"])] == ["tri", "cos"]
    assert [run.name for run in planned_runs(["lr_policy=tri", "lr=0.1,0.2"])] == ["lr=0.1", "lr=0.2"]
    assert len(planned_runs(["lr_policy=glob(cos*)"])) == 7


def test_a_policy_file_is_previewed(tmp_path):
    (tmp_path / "mine.yaml").write_text("_target_: lrbench_pl.policies.Constant\nlr: 0.25\n")
    assert curves(f"lr_policy_file={tmp_path}/mine.yaml", "max_steps=2")[0].rates == (0.25, 0.25)


def test_equal_curves_are_found_an_adaptive_one_is_never_equal():
    shown = curves("lr_policy=fix,plateau", "max_steps=50") + curves("lr_policy=nstep", "lr_policy.milestones=[]")[:0]
    assert equal_curves(shown) == []
    assert shown[1].policy_id is None
    step = curves("lr_policy=step", "lr_policy.step_size=50", "max_steps=50")
    assert equal_curves([*shown, *step]) == [["fix", "step"]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr_policy=auto"], "lr_policy=auto has no rates before training; preview and lint need a policy"),
        (["lr_policy=nope"], "^lr_policy has no choice 'nope'; choose from auto, .*, wsd$"),
        (["lr_policy=="], "'lr_policy==' violates Hydra's grammar|Error parsing override 'lr_policy=='"),
        (["lr_policy=step", "lr_policy.gamma=2"], "lr_policy: gamma must lie in .0, 1., got 2"),
        (["colour=red"], "there is no key 'colour'; lrbench run --help lists them"),
        (["lr_policy_file=nowhere.yaml"], "lr_policy_file=nowhere.yaml: "),
    ],
)
def test_what_cannot_be_previewed_is_one_line(overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        curves(*overrides)
    assert "\n" not in str(caught.value)


def test_the_drawing_fits_its_width_and_shows_the_scale():
    text = draw([Curve("rise", tuple(t / 99 for t in range(100)), "a"), Curve("flat", (0.5,) * 100, "b")], 40)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[0] == "rise"
    assert lines[1].split()[0] == "1"
    assert lines[1][-1] > "\u2800"  # the rise ends at the top right
    assert lines[4][7] > "\u2800"  # and begins at the bottom left
    assert sum("steps 100" in line for line in lines) == 2
    flat = lines[7:11]
    assert [bool(line.strip(" 01")) for line in flat].count(True) == 1


def test_rates_of_nothing_but_zero_are_drawn():
    assert draw([Curve("off", (0.0, 0.0), "a")], 30, 2).splitlines()[2].endswith("⣀")


def test_a_picture(tmp_path):
    write_png(curves("lr_policy=glob(t*)", "max_steps=60"), tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_a_hint(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"a PNG needs matplotlib: pip install 'lrbench_pl\[png\]', or write .html"):
        write_png([Curve("a", (0.1,), "a")], tmp_path / "a.png")


def test_the_commands(tmp_path, monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "preview", "lr_policy=fix,step", "lr_policy.step_size=1000", "lr=0.1")
    assert code == 2
    assert "lr_policy.step_size" in err
    code, out, err = call(monkeypatch, capsys, "preview", "lr_policy=tri,cos", "max_steps=100")
    assert (code, err) == (0, "")
    assert out.startswith("tri\n")
    code, out, _ = call(monkeypatch, capsys, "preview", "lr_policy=tri,cos", "-o", tmp_path / "a.png")
    assert (code, out) == (0, f"2 curves in {tmp_path}/a.png\n")
    code, _, err = call(monkeypatch, capsys, "preview", "-o", "a.pdf")
    assert (code, err) == (2, "error: --output must end in .html or .png, got 'a.pdf'\n")


def test_a_policy_of_ones_own(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mine, it's"
    (folder / "lr_policy").mkdir(parents=True)
    (folder / "lr_policy" / "late.yaml").write_text("_target_: policy_of_a_test.Late\nlr: ${lr}\n")
    (tmp_path / "policy_of_a_test.py").write_text(
        "class Late:\n    def __init__(self, lr): self.lr = lr\n    def __call__(self, t): return self.lr * t / 100\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    asked = ("--config-dir", folder.name, "lr_policy=late", "max_steps=100")
    code, out, err = call(monkeypatch, capsys, "preview", *asked)
    assert (code, out.splitlines()[0], err) == (0, "late", "")
    code, out, _ = call(monkeypatch, capsys, "lint", *asked)
    assert (code, out.split("]")[0]) == (0, "late: warning [rises")
    assert call(monkeypatch, capsys, "lint", "--config-dir", "nowhere")[::2] == (
        2,
        "error: --config-dir must be a folder, got 'nowhere'\n",
    )


def test_lint_exits_for_ci(monkeypatch, capsys):
    assert call(monkeypatch, capsys, "lint", "lr_policy=tri,cosine") == (0, "", "2 checked: 0 errors, 0 warnings\n")
    code, out, err = call(monkeypatch, capsys, "lint", "lr_policy=step", "lr_policy.gamma=0.01")
    assert (code, err) == (0, "1 checked: 0 errors, 1 warning\n")
    assert out.startswith("step: warning [jump] the rate drops to 0.01 of itself at step 334; set gamma to 0.1")
    assert call(monkeypatch, capsys, "lint", "--strict", "lr_policy=step", "lr_policy.gamma=0.01")[0] == 1
    assert call(monkeypatch, capsys, "lint", "lr_policy=step", "lr_policy.step_size=1000")[0] == 1
    equal = call(monkeypatch, capsys, "lint", "lr_policy=linear,poly", "++lr_policy.power=1")
    assert equal[1].endswith("the same policy over this budget: linear, poly\n")


def test_neither_needs_torch(monkeypatch, capsys):
    code = (
        "import sys; from lrbench_pl.cli import preview; from lrbench_pl.runs import lint; "
        "print([lint.lint(run.plan) for run in preview.planned_runs(['lr_policy=tri'])], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[[]] False"
