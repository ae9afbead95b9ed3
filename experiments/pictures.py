"""Make the pictures of the report and of the ranking in the guides.

    python experiments/pictures.py [--work multirun/pictures]

Trains two sweeps on the digits (five minutes; finished runs are kept), writes their reports and photographs them in
Chromium: ``docs/report.png``, the beginning of a report, and ``docs/ranking.png``, the figure of the ranking in
``docs/read-the-ranking.md``. Needs ``chromium`` and ``chromedriver``.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parents[1]
SWEEPS = {
    "report": [
        "lr_policy=fix,step,exp,poly,tri,sin2,cosine,wsd,onecycle,sinexp,plateau,composite_tri",
        "optimizer=momentum,adam,sgd",
        "seed=range(5)",
        *("max_steps=300", "check_every=20", "target=0.96", "stop_at_target=false"),
    ],
    "ranking": [  # that of read-the-ranking.md
        "lr_policy=fix,exp,tri,cosine,plateau,sinexp",
        "seed=range(8)",
        *("max_steps=400", "target=0.97", "stop_at_target=false"),
    ],
}
WIDTH, HEIGHT = 1240, 1500  # of a page, in pixels


def main() -> None:
    """Train what is missing, and make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("multirun/pictures"), help="folder of the sweeps")
    work = parser.parse_args().work
    for name, overrides in SWEEPS.items():
        command = [sys.executable, str(ROOT / "run.py"), "-m", *overrides, f"hydra.sweep.dir={work / name}"]
        subprocess.run(command, check=True)
        page = work / f"{name}.html"
        subprocess.run([sys.executable, "-m", "lrbench_pl", "report", str(work / name), "-o", str(page)], check=True)
        photograph(page, ROOT / "docs" / f"{name}.png", None if name == "report" else "section:first-of-type figure")


def photograph(page: Path, picture: Path, part: str | None) -> None:
    """Write a picture of the beginning of a page, or of one part of it, named by a CSS selector."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("headless", "no-sandbox", "disable-gpu", "hide-scrollbars", f"user-data-dir={profile}"):
            options.add_argument(f"--{flag}")
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            screen = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            driver.get(page.resolve().as_uri())
            root = driver.find_element(By.TAG_NAME, "html")
            WebDriverWait(driver, 60).until(lambda _: root.get_attribute("data-drawn"))
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT}
            if part is not None:
                clip = driver.find_element(By.CSS_SELECTOR, part).rect
            shot = driver.execute_cdp_cmd(
                "Page.captureScreenshot", {"clip": {**clip, "scale": 1}, "captureBeyondViewport": True}
            )
            picture.write_bytes(base64.b64decode(shot["data"]))
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
