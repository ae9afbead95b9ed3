"""The report: what its figures show, and the page in a real browser."""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import polars as pl
import pytest

from lrbench_pl.analysis import curves, plots
from lrbench_pl.analysis.load import load_runs
from lrbench_pl.analysis.plots._mutual import contrasting
from lrbench_pl.analysis.ranking import rank
from lrbench_pl.analysis.report import figures, report, write_report
from tests import forks
from tests.analysis.test_history import run as trained
from tests.analysis.test_ranking import write
from tests.cli.test_cli import call
from tests.faults.sweeps import ENVIRONMENT, LIMIT_S

ROOT = Path(__file__).resolve().parents[2]
NASTY = "<script>alert(1)</script>"
LEG = {"kind": "branch", "policy_step": 80, "spent": 240, "steps": 40, "rates": [0.2, 0.01]}


def sweep(folder, policies=("tri", "cos"), optimizers=("sgd", "adam"), rates=(0.05,), seeds=5):
    for p, policy in enumerate(policies):
        for o, optimizer in enumerate(optimizers):
            for lr in rates:
                for seed in range(seeds):
                    steps = 40 + 20 * ((p + o + seed) % 4)
                    at = write(folder, policy, steps, seed, optimizer=optimizer, lr=lr, max_steps=200, mode="max",
                               confirmations=1)  # fmt: skip
                    lines = ["step,lr,check/step,val/accuracy"]
                    lines += [f"{t},{lr * (1 - t / 200)},," for t in range(0, 200, 20)]
                    lines += [f"{t - 1},,{t},{1 - 1 / (t / 10 + p + seed)}" for t in range(20, 201, 20)]
                    (at / "metrics.csv").write_text("\n".join(lines) + "\n")
    return load_runs([folder])


def grouped(runs, keys=("policy",)):
    return plots.groups(runs.table, rank(runs.table, list(keys)), list(keys))


def test_a_band_keeps_the_last_value_of_a_run_that_ended():
    found = curves.band([curves.RunCurves((10, 20), (0.5, 0.9)), curves.RunCurves((10,), (0.7,))])
    assert (found.steps, found.median, found.low, found.high) == ((10, 20), (0.6, 0.8), (0.5, 0.7), (0.7, 0.9))
    with pytest.raises(ValueError, match="expected at least one run, got none"):
        curves.band([])


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "step,lr,check/step,val/accuracy\n1,0.1,,\n"])
def test_a_history_without_checks_is_none(tmp_path, text):
    assert curves.read_curves(tmp_path, "val/accuracy") is None
    (tmp_path / "metrics.csv").write_text(text)
    assert curves.read_curves(tmp_path, "val/accuracy") is None


def test_the_rates_of_a_range_test_are_left_out_of_a_history(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,lr,check/step,val/accuracy\n0,5.0,,\n9,7.0,,\n10,0.2,,\n19,,20,0.9\n")
    legs = [{**LEG, "kind": "range", "policy_step": 0, "spent": 0, "steps": 10, "why": "", "averaged": False}]
    legs += [{**LEG, "kind": "stable", "policy_step": 0, "spent": 10, "steps": 10, "why": "", "averaged": False}]
    (tmp_path / "tuning.json").write_text(json.dumps(legs))
    found = curves.read_curves(tmp_path, "val/accuracy")
    assert (found.rate_steps, found.rates) == ((10,), (0.2,))


def test_a_segment_is_drawn_with_its_rates(tmp_path):
    info = plots.tuning_info([{**LEG, "rates": [0.1, 0.2, 0.1]}], "seed 0")
    (line,) = [trace for trace in plots.tuning_figure(info).data if trace.mode == "lines"]
    assert (line.x, line.y) == ((240, 260, 280, None), (0.1, 0.2, 0.1, None))


def test_a_truncated_history_is_read_as_far_as_it_goes(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,lr,check/step,val/accuracy\n9,,10,0.5\n19,,20,nan\n29,,30,0.7\n39,,4")
    found = curves.read_curves(tmp_path, "val/accuracy")
    assert (found.steps, found.values) == ((10, 30), (0.5, 0.7))


@pytest.mark.parametrize("text", ["", "{", "[]", '[{"kind": "trunk"}]', "3"])
def test_what_is_no_composition_is_none(tmp_path, text):
    (tmp_path / "tuning.json").write_text(text)
    assert curves.read_tuning(tmp_path) is None


def test_arrivals_rise_as_runs_reach_the_target(tmp_path):
    for seed, steps in enumerate([40, 80, None, None]):
        write(tmp_path, "a", steps, seed, max_steps=100)
    info = plots.arrivals_info(grouped(load_runs([tmp_path])), 0.97)
    assert (info.lines[0].x, info.lines[0].y) == ((0.0, 40.0, 80.0, 100.0), (0.0, 0.25, 0.5, 0.5))
    assert plots.arrivals_info(grouped(load_runs([tmp_path])), None) is None


def test_the_heat_map_has_the_expected_steps_of_the_ranking(tmp_path):
    for policy, each in {"a": [40, None], "b": [None, None]}.items():
        for seed, steps in enumerate(each):
            for optimizer in ("sgd", "adam"):
                write(tmp_path, policy, steps, seed, optimizer=optimizer, max_steps=100)
    runs = load_runs([tmp_path]).table
    info = plots.heat_info(runs)
    assert (info.policies, info.steps) == (("a", "b"), ((140.0, 140.0), (math.inf, math.inf)))
    assert info.words == (("140 (1/2)", "140 (1/2)"), ("∞ (0/2)", "∞ (0/2)"))
    assert rank(runs)["expected_steps"].to_list() == [140, 140, math.inf, math.inf]
    assert plots.heat_info(runs.filter(pl.col("optimizer") == "sgd")) is None
    assert plots.heat_info(runs.filter(pl.col("policy") == "b")) is None


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return sum(w * ((c + 0.055) / 1.055) ** 2.4 for w, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def test_dark_is_fast_and_every_cell_is_readable():
    steps = tuple(float(each) for each in range(100, 2100, 100))
    words = tuple(map(str, steps))
    drawn = plots.heat_figure(plots.HeatInfo(("a", "b"), words, (steps, (math.inf,) * 20), (words, ("∞",) * 20)))
    (_, fast), (_, slow) = drawn.data[0].colorscale
    assert luminance(fast) < luminance(slow)
    assert drawn.data[0].z[0][0] == drawn.data[0].zmin
    assert set(drawn.data[0].z[1]) == {None}
    colours = [each.font.color for each in drawn.layout.annotations]
    assert colours[:20] == sorted(colours[:20], reverse=True)
    assert set(colours[20:]) == {None}  # that of the page
    for red in range(0, 256, 15):
        for green in range(0, 256, 15):
            text, cell = (luminance(c) + 0.05 for c in (contrasting((red, green, 90)), f"#{red:02x}{green:02x}5a"))
            assert max(text, cell) / min(text, cell) > 4.4


def test_a_policy_that_some_runs_missed_with_is_marked_in_the_ranking(tmp_path):
    for policy, each in {"whole": [80] * 5, "some": [40] * 4 + [None], "none": [None] * 5}.items():
        for seed, steps in enumerate(each):
            write(tmp_path, policy, steps, seed, max_steps=100)
    drawn = plots.ranking_figure(plots.ranking_info(rank(tmp_path), ["policy"], 100))
    left = [trace for trace in drawn.data if trace.xaxis == "x" and trace.mode == "markers" and trace.y != (None,)]
    symbols = {name: symbol for trace in left for name, symbol in zip(trace.y, trace.marker.symbol, strict=True)}
    assert symbols == {"whole": "circle", "some": "circle-open", "none": "x-thin-open"}
    (shares,) = [trace for trace in drawn.data if trace.mode == "text"]
    assert dict(zip(shares.y, shares.text, strict=True)) == {
        "whole": "5/5",
        "some": "<b>4/5</b>",
        "none": "<b>0/5</b>",
    }
    legend = [(trace.name, trace.marker.symbol) for trace in drawn.data if trace.showlegend is not False]
    assert all(symbol == "circle" for _, symbol in legend)


def test_curves_of_one_policy_with_two_optimizers_do_not_hide_each_other(tmp_path):
    runs = sweep(tmp_path)
    drawn = figures(runs.table, rank(runs.table), ["policy", "optimizer"])
    for name in ("course", "arrivals"):
        lines = [trace for trace in drawn[name].data if trace.meta and "name" in trace.meta]
        for policy in ("tri", "cos"):
            dashes = {line.meta["name"]: line.line.dash for line in lines if line.meta["name"].startswith(policy)}
            assert sorted(dashes.values()) == ["dash", "solid"]
        order = [line.line.dash for line in lines if line.yaxis in ("y", None)]
        assert order == sorted(order, reverse=True)  # the dashed ones are drawn last


def test_sensitivity_needs_three_rates(tmp_path):
    runs = sweep(tmp_path, optimizers=("sgd",), rates=(0.01, 0.02, 0.04))
    info = plots.sensitivity_info(runs.table)
    assert info.lines[0].x == (0.01, 0.02, 0.04)
    assert info.octaves[0] == "≥ 2.0 octaves"
    assert plots.sensitivity_info(runs.table.filter(pl.col("lr") < 0.03)) is None


def test_a_composition_shows_every_segment():
    info = plots.tuning_info([{**LEG, "value": 0.9, "kept": True, "why": "<b>"}, LEG], "seed 0", 0.97)
    assert [(each.begin, each.end, each.kept) for each in info.segments] == [(240, 280, True), (240, 280, False)]
    drawn = plots.tuning_figure(info)
    assert {trace.name for trace in drawn.data} == {"decay branch, kept", "decay branch, abandoned"}


@pytest.mark.slow
def test_sixty_policies_have_six_colours_and_one_entry_for_the_others(tmp_path):
    runs = sweep(tmp_path, [f"p{number}" for number in range(60)], ("sgd",), seeds=1)
    drawn = figures(runs.table, rank(runs.table), ["policy"])["arrivals"]
    assert sum(trace.showlegend for trace in drawn.data) == 7
    assert any(trace.name == "the 54 others" for trace in drawn.data)


def test_names_are_text_and_nothing_is_loaded(tmp_path):
    page = report(sweep(tmp_path, (NASTY, "tri")))
    assert NASTY not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    own = page.split("/**\n* plotly.js")[0]
    assert 'src="http' not in own
    assert '<link rel="stylesheet"' not in own


def test_parts_without_data_are_left_out(tmp_path):
    write(tmp_path, "a", None, target=None)
    page = report(load_runs([tmp_path]))
    assert "<h2>Table</h2>" in page
    for absent in ("Ranking", "Accuracy and learning rate", "Runs at the target", "Policy and optimizer", "Composed"):
        assert f"<h2>{absent}" not in page


def test_the_commands(tmp_path, monkeypatch, capsys):
    sweep(tmp_path / "s", seeds=1)
    code, out, _ = call(monkeypatch, capsys, "report", tmp_path / "s", "-o", tmp_path / "new" / "r.html")
    assert (code, out) == (0, f"4 runs in {tmp_path}/new/r.html\n")
    code, out, _ = call(monkeypatch, capsys, "preview", "lr_policy=tri,cos", "-o", tmp_path / "p.html")
    assert (code, out) == (0, f"2 curves in {tmp_path}/p.html\n")
    assert 'class="plot"' in (tmp_path / "p.html").read_text()


def test_another_target_and_a_baseline(tmp_path, monkeypatch, capsys):
    for policy, steps in (("tri", 40), ("fix", 60)):
        for seed in range(5):
            checks = [(20, 0.5), (steps, 0.96), (100, 0.98)]
            trained(tmp_path / "s", policy, steps, checks, seed=seed, final_value=0.98)
    page = tmp_path / "r.html"
    given = ("report", tmp_path / "s", "-o", page)
    code, _, err = call(monkeypatch, capsys, *given, "--target", 0.9, "--baseline", "fix")
    assert (code, err) == (0, "")
    assert ", to 0.9 val/accuracy within" in page.read_text()
    rows = re.findall(r'<tr data-group="(\w+)">(.*?)</tr>', page.read_text())
    assert [(name, '">1.50</td>' in cells) for name, cells in rows] == [
        ("tri", True),
        ("fix", False),
    ]
    assert (
        '<p class="answer"><strong>tri reached 0.9 soonest, 1.5 times as fast as fix</strong>; 5 seeds'
        in page.read_text()
    )
    code, _, err = call(monkeypatch, capsys, *given, "--baseline", "nothing")
    assert (code, err.startswith("error: --baseline must name one of")) == (2, True)


def look_at(page, profile, plots):
    """Open a report in a browser: everything is drawn, nothing complains, the table sorts."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
    for flag in [*flags.split(), "disable-component-update", f"user-data-dir={profile}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(page.as_uri())
        root = driver.find_element(By.TAG_NAME, "html")
        WebDriverWait(driver, 60).until(lambda _: root.get_attribute("data-drawn"))
        drawn = driver.find_elements(By.CSS_SELECTOR, ".plot")
        assert len(drawn) == plots
        assert all(plot.find_elements(By.CSS_SELECTOR, ".main-svg .trace, .main-svg .hm") for plot in drawn)
        table = driver.find_element(By.CSS_SELECTOR, "table.sorts")  # that of the ranking
        heads = table.find_elements(By.CSS_SELECTOR, "th")
        column = [head.text for head in heads].index("median steps")

        def values():
            rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
            return [float(row.find_elements(By.TAG_NAME, "td")[column].get_attribute("data-value")) for row in rows]

        heads[column].find_element(By.TAG_NAME, "button").click()
        up = values()
        heads[column].find_element(By.TAG_NAME, "button").click()
        assert up == sorted(up) == values()[::-1]
        assert len(set(up)) > 1
        driver.find_element(By.CSS_SELECTOR, "tbody tr").click()
        assert len(driver.find_elements(By.CSS_SELECTOR, "tr.chosen")) == 1
        driver.find_element(By.CSS_SELECTOR, ".command button").click()
        command = driver.find_element(By.CSS_SELECTOR, ".command pre").text
        assert driver.execute_script("return getSelection().toString().trim()") == command
        phone = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        state = """
            const shown = (axis) => [...document.querySelectorAll(
              `section:first-of-type .${axis}axislayer-above .${axis}tick text`
            )].filter((text) => text.getClientRects().length).length;
            const cut = [...document.querySelectorAll("pre, main")].filter((box) => box.scrollWidth > box.clientWidth);
            return [shown("y"), shown("x") > 2, document.querySelectorAll(".wide:not(.cut)").length, cut.length];
        """
        # names are above the lines and the axis keeps its ticks; the tables say that there is more; nothing is cut
        WebDriverWait(driver, 20).until(lambda _: driver.execute_script(state) == [0, True, 0, 0])
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        driver.quit()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no chromium, chromedriver")
def test_the_page_in_a_browser(tmp_path):
    runs = sweep(tmp_path / "s", (NASTY, "tri", "cos"), rates=(0.01, 0.02, 0.04), seeds=3)
    (tmp_path / "s" / "0" / "tuning.json").write_text(json.dumps([{**LEG, "value": 0.9, "kept": True, "why": "x"}]))
    (tmp_path / "s" / "multirun.yaml").write_text(f"hydra: {{overrides: {{task: [name={'x' * 500}]}}}}\n")
    look_at(write_report(runs, tmp_path / "r.html"), tmp_path / "profile", plots=6)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no chromium, chromedriver")
def test_the_page_of_a_real_sweep(tmp_path):
    """The digits: 7 policies, one of which has no colour of its own, 2 optimizers, 2 seeds."""
    given = ["lr_policy=fix,step,tri,sin2,cosine,wsd,composite_tri", "optimizer=momentum,adam", "seed=0,1"]
    given += ["max_steps=30", "check_every=10", "target=0.5", "trainer=cpu", "hydra.sweep.dir=sweep"]
    done = forks.run([sys.executable, ROOT / "run.py", "-m", *given], tmp_path, ENVIRONMENT, LIMIT_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    runs = load_runs([tmp_path / "sweep"])
    assert runs.table.height == 28
    assert not runs.skipped
    look_at(write_report(runs, tmp_path / "r.html"), tmp_path / "profile", plots=5)
