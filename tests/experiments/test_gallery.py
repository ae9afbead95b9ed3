"""The gallery comes out of the policies and the frozen results; its pictures are not compared."""

import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lrbench_pl import cli, policies
from lrbench_pl.policies import Cyclic
from tests.docs.blocks import blocks
from tests.docs.test_prose import long_lines

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

import gallery  # noqa: E402

SHAPES = [name for family in gallery.FAMILIES for name in family.members if name not in gallery.ADAPTIVE]


def test_its_text_is_that_of_the_policies_and_the_frozen_results():
    texts = gallery.texts()
    assert sorted(texts) == sorted(gallery.GALLERY.glob("*.md"))
    stale = [path.name for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run python experiments/gallery.py --text"


def test_its_prose_wraps_and_its_pictures_are_small():
    for path in gallery.GALLERY.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert long_lines(text) == []
        (picture,) = re.findall(r"!\[[^]]+\]\((\S+\.svg)\)", text)
        assert 1000 < (gallery.GALLERY / picture).stat().st_size < 100_000


def test_every_policy_is_in_one_family():
    names = [name for family in gallery.FAMILIES for name in family.members]
    expected = {path.stem for path in (ROOT / "conf" / "lr_policy").glob("*.yaml")} - set(gallery.NOT_SHAPES)
    assert sorted(names) == sorted(expected)


def test_its_commands_are_one_for_each_page_and_one_of_them_runs():
    for family in gallery.FAMILIES:
        (block,) = [block for block in blocks(gallery.page(family)) if block.kind == "commands"]
        assert f" lr_policy={','.join(family.members)}" in block.text
    (block,) = [block for block in blocks(gallery.page(gallery.FAMILIES[1])) if block.kind == "commands"]
    program, *arguments = block.text.split()
    done = CliRunner().invoke(cli.app, arguments)
    assert (program, done.exit_code) == ("lrbench", 0), done.output
    assert all(name in done.output for name in gallery.FAMILIES[1].members)


@pytest.mark.parametrize("name", SHAPES)
def test_the_code_of_a_policy_makes_it(name):
    value = gallery.policy(name, 1.0, 100)
    assert eval(gallery.code(value), vars(policies)) == value


@pytest.mark.parametrize("name", SHAPES)
def test_the_formula_of_a_cycle_gives_its_rates(name):
    cycle = gallery.policy(name)
    if not isinstance(cycle, Cyclic):
        return
    wave = re.sub(r"(\d|pi) u", r"\1 * u", gallery.wave_formula(cycle.wave)).replace("2 pi", "2 * pi")
    decay = gallery.DECAYS[gallery._decay(cycle)]
    for t in range(0, 1000, 37):
        known = {**vars(math), "t": t, "u": (t + cycle.phase) / cycle.period % 1, "phase": cycle.phase}
        known |= {"period": cycle.period, "gamma": cycle.gamma}
        rate = cycle.base_lr + (cycle.max_lr - cycle.base_lr) * eval(wave, known) * eval(decay, known)
        assert cycle(t) == pytest.approx(rate, abs=1e-9)


def test_who_won_and_who_did_not(monkeypatch):
    first, *_ = [each for each in gallery.entries() if each.policy == "tri"]
    shown = {
        "won": replace(first, place=1, of=3, same_tier=True),
        "lost": replace(first, place=3, of=3, first="cos", same_tier=False, policy="tri2"),
        "missed": replace(first, place=2, of=3, same_tier=True, policy="triexp", row=replace(first.row, reached=4)),
        "fine": replace(first, place=2, of=3, same_tier=True, policy="dtri"),
    }
    monkeypatch.setattr(gallery, "entries", lambda: tuple(shown.values()))
    monkeypatch.setattr(gallery, "pairs", lambda: ())
    (family,) = [family for family in gallery.FAMILIES if family.page == "triangle"]
    (win,) = gallery.won(family)
    assert win.startswith("`tri`: first of 3 on cifar10/")
    worse, missed = gallery.lost(family)
    assert worse.startswith("`tri2`: significantly worse than `cos` on cifar10/")
    assert missed.startswith(f"`triexp`: missed on {first.row.n - 4} of {first.row.n} seeds")
    assert gallery.standing(family) == (1, 1, 0, 0)


def test_code_is_not_broken_between_lines():
    assert gallery._prose("one `two three` four", 12) == ["one", "`two three`", "four"]
