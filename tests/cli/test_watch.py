"""``lrbench report --watch``: the page while a sweep runs, and in a browser."""

import shutil
import time

import pytest

from lrbench_pl.analysis.report import write_report
from lrbench_pl.analysis.web_page import Live
from lrbench_pl.cli import watch as watching
from lrbench_pl.runs.folder import LOCK_FILE, RECORD_FILE
from lrbench_pl.runs.locks import lock_of
from lrbench_pl.runs.result import RunResult
from lrbench_pl.sweeps.reservations import Reservations
from tests.analysis.test_ranking import COMMON, write
from tests.analysis.test_report import sweep
from tests.cli.test_cli import call

LIVE = 'id="status"'


def begin(folder):
    """Begin a run as its process does; return the lock that it holds."""
    folder.mkdir(parents=True)
    (folder / RECORD_FILE).write_text("{}")
    lock = lock_of(folder / LOCK_FILE)
    lock.acquire()
    return lock


def finish(folder, policy, seed, steps=40):
    """Write a result."""
    row = {**COMMON, "policy": policy, "seed": seed, "steps_to_target": steps, "best_value": 0.98, "max_steps": 100}
    RunResult(run_id=f"{policy}{seed}", status="missed" if steps is None else "reached", **row).write(folder)
    (folder / RECORD_FILE).write_text("{}")


class Script:
    """Stands in for time.sleep: each step of a script happens between two looks at the folders."""

    def __init__(self, page, *steps):
        self.page, self.steps, self.pages, self.waits = page, list(steps), [], []

    def __call__(self, seconds):
        self.waits.append(seconds)
        self.pages.append(self.page.read_text() if self.page.exists() else None)
        if not self.steps:
            raise AssertionError("the watch did not end")
        self.steps.pop(0)()


@pytest.fixture
def watched(tmp_path, monkeypatch, capsys):
    """Run the command in a sweep of three runs, the first of which is done, with a script between its looks."""
    page = tmp_path / "r.html"

    def go(*steps, options=()):
        script = Script(page, *steps)
        monkeypatch.setattr(watching.time, "sleep", script)
        code, out, err = call(monkeypatch, capsys, "report", tmp_path / "s", "-o", page, "--watch", *options)
        return code, out.splitlines(), err, script

    return go


def nothing():
    """Let nothing happen."""


def test_the_page_follows_a_sweep_and_is_an_ordinary_one_in_the_end(tmp_path, watched, monkeypatch, capsys):
    folder = tmp_path / "s"
    reservations = Reservations(folder).__enter__()
    reservations.reserve({folder / name: name for name in ("0", "1", "2")})
    finish(folder / "0", "tri", 0)
    lock = begin(folder / "1")

    def end():
        finish(folder / "1", "cos", 1)
        lock.release()

    def end_all():
        finish(folder / "2", "fix", 2, steps=None)
        reservations.__exit__(None, None, None)

    code, lines, err, script = watched(nothing, end, end_all, nothing, options=("--every", "7"))
    assert (code, err, set(script.waits)) == (0, "", {7.0})
    assert [line.partition(": ")[2] for line in lines[:-1]] == [
        "1 of 3 runs finished",
        "2 of 3 runs finished",
        "3 of 3 runs finished",
    ]
    assert lines[-1] == f"3 runs in {tmp_path}/r.html"
    assert [LIVE in text for text in script.pages] == [True] * 4
    assert script.pages[0] == script.pages[1]  # nothing had changed
    assert ", 2 of 3 runs finished</p>" in script.pages[2]
    last = (tmp_path / "r.html").read_text()
    assert LIVE not in last
    assert "live" not in last.rpartition("</script>\n<script>")[2]
    assert call(monkeypatch, capsys, "report", folder, "-o", tmp_path / "plain.html")[0] == 0
    assert last == (tmp_path / "plain.html").read_text()


def test_it_waits_for_the_folder_and_its_first_result(tmp_path, watched):
    locks = []

    def start():
        locks.append(begin(tmp_path / "s" / "0"))

    def end():
        finish(tmp_path / "s" / "0", "tri", 0)
        locks[0].release()

    code, lines, _, script = watched(nothing, nothing, start, end, nothing)
    assert code == 0
    assert lines[0].startswith("waiting: ")
    assert lines[0].endswith("no such folder; expected the folder of a run or of a sweep")
    assert ": no run with a readable result.json" in lines[1]
    assert lines[2].endswith(": 1 of 1 run finished")
    assert lines[3:] == [f"1 run in {tmp_path}/r.html"]
    assert script.pages[:4] == [None] * 4


def test_ctrl_c_leaves_an_ordinary_page_and_exits_as_other_commands(tmp_path, watched):
    finish(tmp_path / "s" / "0", "tri", 0)
    lock = begin(tmp_path / "s" / "1")

    def press():
        raise KeyboardInterrupt

    code, lines, err, script = watched(press)
    lock.release()
    assert (code, err) == (130, "")
    assert lines[-1] == f"1 run in {tmp_path}/r.html"
    assert LIVE in script.pages[0]
    assert LIVE not in (tmp_path / "r.html").read_text()


def test_ctrl_c_before_any_result_writes_nothing(tmp_path, watched):
    def press():
        raise KeyboardInterrupt

    assert watched(press)[0] == 130
    assert not (tmp_path / "r.html").exists()


def test_failed_runs_are_counted(tmp_path):
    write(tmp_path, "tri", 40, 0, max_steps=100)
    write(tmp_path, "cos", None, 0, status="failed", max_steps=100)
    progress = watching.Progress([tmp_path])
    progress.update()
    assert str(progress) == "2 of 2 runs finished, 1 failed"


def test_only_runs_with_a_record_tell_when_they_are_over(tmp_path):
    finish(tmp_path / "0", "tri", 0)
    progress = watching.Progress([tmp_path])
    progress.update()
    assert progress.is_over
    (tmp_path / "0" / RECORD_FILE).unlink()  # as another program's own training, which holds no lock
    progress.update()
    assert not progress.is_over


def test_a_mistake_is_one_line(tmp_path, watched):
    finish(tmp_path / "s" / "0", "tri", 0)
    code, _, err, _ = watched(options=("--every", "0"))
    assert (code, err) == (2, "error: --every must be at least 0.1 seconds, got 0\n")
    code, lines, err, _ = watched(nothing, options=("--baseline", "nothing"))
    assert code == 2
    assert lines[0].startswith("waiting: --baseline must name one of")
    assert err.startswith("error: --baseline must name one of")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no chromium, chromedriver")
def test_an_open_page_reloads_itself_until_the_last_one(tmp_path):
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    runs, page = sweep(tmp_path / "s", seeds=2), tmp_path / "r.html"
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", f"user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    write_report(runs, page, live=Live("1", 1.0, "updated 12:00:00, 8 of 9 runs finished"))
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        wait = WebDriverWait(driver, 60, ignored_exceptions=[Exception])  # the page may go away at any moment
        drawn = "return document.documentElement.dataset.drawn"
        driver.get(page.as_uri())
        wait.until(lambda _: driver.execute_script(drawn))
        loads = driver.execute_script("window.marked = true; return performance.timeOrigin")
        time.sleep(3)  # some looks at an unchanged file
        assert driver.execute_script("return window.marked && performance.timeOrigin") == loads
        driver.find_element(By.CSS_SELECTOR, "tbody tr").click()
        driver.find_elements(By.CSS_SELECTOR, "th button")[-1].click()
        driver.execute_script("scrollTo(0, 300)")
        marks = ("tr.chosen", "[aria-sort]")
        counts = ", ".join(f"document.querySelectorAll('{mark}').length" for mark in marks)
        view = f"return [scrollY, {counts}]"
        assert driver.execute_script(view) == [300, 1, 1]

        write_report(runs, page, live=Live("2", 1.0, "updated 12:00:05, 9 of 9 runs finished"))
        wait.until(lambda _: "9 of 9 runs" in driver.find_element(By.ID, "status").text)
        wait.until(lambda _: driver.execute_script(view) == [300, 1, 1])

        write_report(runs, page)
        wait.until(lambda _: not driver.find_elements(By.ID, "status") and driver.execute_script(drawn))
        assert not driver.find_elements(By.TAG_NAME, "iframe")
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        driver.quit()
