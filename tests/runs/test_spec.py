"""The specification of a run: what is part of the question, and everything that is derived from it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from omegaconf import OmegaConf, open_dict, read_write

from lrbench_pl.analysis.listing import listing, sections
from lrbench_pl.analysis.load import AnalysisError, load_runs
from lrbench_pl.analysis.ranking import rank
from lrbench_pl.analysis.report import report
from lrbench_pl.cli.verify import verify
from lrbench_pl.runs.config import compose
from lrbench_pl.runs.folder import Record, differences
from lrbench_pl.runs.result import RunResult
from lrbench_pl.runs.spec import RunSpec, canonical, differing
from lrbench_pl.selection.distance import Query, UnsuitableError, distance
from tests.runs.test_run import run as train

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def spec(*overrides):
    return RunSpec.from_config(compose(list(overrides)))


def write(folder, *overrides, steps=100, status="reached", **changes):
    """A result as a run of this configuration would leave it."""
    its = spec(*overrides)
    task = its.task
    result = RunResult(
        run_id=its.run_id,
        policy=its.policy_name,
        status=status,
        seed=its.seed,
        lr=its.lr,
        steps_to_target=steps,
        best_value=0.96,
        steps_run=steps or task.max_steps,
        target=task.target,
        settings=its.settings,
        policy_id="p" + its.policy_name,
        **{name: getattr(task, name) for name in ("dataset", "model", "optimizer", "batch_size", "max_steps")},
        **{name: getattr(task, name) for name in ("monitor", "mode", "confirmations", "check_on")},
    )
    result = replace(result, **changes)
    result.write(folder)
    return result


# -- what is part of it --------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    seeds=some.tuples(some.integers(0, 2**31), some.integers(0, 2**31)),
    rates=some.tuples(some.floats(1e-6, 10.0), some.floats(1e-6, 10.0)),
    policy=some.sampled_from(["tri", "composite_tri", "plateau", "auto", "warmup_cosine", "inv", "exp"]),
)
def test_all_seeds_and_rates_share_one_task(seeds, rates, policy):
    one, two = (spec(f"lr_policy={policy}", f"seed={s}", f"lr={r!r}") for s, r in zip(seeds, rates, strict=True))
    assert one.task == two.task
    assert hash(one.task) == hash(two.task)
    assert one.settings == two.settings
    assert (one.run_id == two.run_id) == ((seeds[0], rates[0]) == (seeds[1], rates[1]))
    assert RunSpec.from_dict(json.loads(json.dumps(one.to_dict()))).run_id == one.run_id


def test_a_fixed_split_is_another_task_than_one_that_follows_the_seed():
    follows, fixed = spec("seed=0"), spec("seed=0", "dataset.seed=0")
    assert follows.task != fixed.task
    assert spec("seed=1", "dataset.seed=0").task == fixed.task
    assert follows.run_id != fixed.run_id


SAME = [
    "dataset.root=/elsewhere",
    "dataset.download=true",
    "dataset.device=cpu",
    "+dataset.num_workers=3",
    "threads=2",
    "trainer=cpu",
    "trainer.log_every_n_steps=7",
    "trainer.enable_model_summary=true",
    "logger=none",
    "study=s",
    "require_target=true",
    "checkpoint_every=5",
    "max_time=9.0",
    "extendable=true",
    "extendable=[500,700]",
    "share_equal=false",
    "names.policy=other",
    "optimizer.lr=0.7",
    "optimizer.weight_decay=0",
]
OTHER = [
    "optimizer.weight_decay=0.1",
    "optimizer.momentum=0.5",
    "+optimizer.dampening=0.1",
    "model.hidden=[32]",
    "dataset.validation=200",
    "dataset.mean=0.4",
    "param_groups=[{params: '*.bias', lr_scale: 2.0}]",
    "trainer.precision=bf16-mixed",
    "trainer.accumulate_grad_batches=2",
    "channels_last=false",
    "compile=true",
    "check_every=7",
    "batch_size=32",
    "max_steps=900",
    "target=0.9",
    "mode=min",
    "confirmations=2",
    "monitor=val/loss",
    "dataset.check_on=test",
]


@pytest.mark.parametrize("override", SAME)
def test_what_changes_no_number_is_no_part_of_it(override):
    base, changed = spec(), spec(override)
    assert changed == base or override == "names.policy=other"
    assert changed.run_id == base.run_id


@pytest.mark.parametrize("override", OTHER)
def test_what_changes_the_numbers_is_another_task(override):
    base, changed = spec(), spec(override)
    assert changed.task != base.task
    assert changed.run_id != base.run_id


@pytest.mark.parametrize("override", ["lr=0.2", "seed=1", "lr_policy=tri", "stop_at_target=false"])
def test_the_rest_is_another_run_of_the_same_task(override):
    base, changed = spec(), spec(override)
    assert changed.task == base.task
    assert changed.run_id != base.run_id


def test_the_rate_of_auto_counts_only_where_a_workload_has_its_own():
    """Without a workload it is the optimizer's, so that runs of versions without this option are the same."""

    def specs(policy, *workload):
        cfg = compose([f"lr_policy={policy}", *workload])
        before = cfg.copy()
        auto = before.lr_policy.get("otherwise", before.lr_policy)
        with read_write(before), open_dict(before):
            del auto["lr"], auto["accept_average"]
        return RunSpec.from_config(cfg), RunSpec.from_config(before)

    for policy in ("auto", "best"):
        now, before = specs(policy)
        assert (now.run_id, now.settings) == (before.run_id, before.settings)
        now, before = specs(policy, "workload={_target_: a.B}")
        assert now.run_id != before.run_id
    assert spec("lr_policy=auto", "lr_policy.lr=0.3").run_id != spec("lr_policy=auto").run_id


def test_what_is_derived_from_the_rate_keeps_runs_of_other_rates_apart():
    """Equal rates of two policies are shared, but not where the task itself takes the rate."""
    halved, whole = spec("lr=0.1"), spec("lr=0.2")
    assert halved.but_for_rates == whole.but_for_rates
    own = "+optimizer.eps='${lr}'"
    halved, whole = spec("lr=0.1", own), spec("lr=0.2", own)
    assert halved.task == whole.task
    assert halved.task.settings["optimizer.eps"] == "lr"
    assert halved.but_for_rates != whole.but_for_rates


def test_the_value_of_a_policy_file_counts(tmp_path):
    """An edited file is another run; the same content under another name is the same one."""
    path = tmp_path / "a" / "p.yaml"
    path.parent.mkdir()
    path.write_text("{_target_: lrbench_pl.policies.Constant, lr: 0.1}\n")
    first = spec(f"lr_policy_file={path}")
    copy = shutil.copy(path, tmp_path / "q.yaml")
    assert spec(f"lr_policy_file={copy}").run_id == first.run_id
    path.write_text("{_target_: lrbench_pl.policies.Constant, lr: 0.2}\n")
    edited = spec(f"lr_policy_file={path}")
    assert (edited.policy_name, edited.policy["lr"]) == ("p", 0.2)
    assert edited.run_id != first.run_id


# -- resuming ------------------------------------------------------------------------------------------------


def test_an_edited_policy_file_does_not_bring_the_old_result_back(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("{_target_: lrbench_pl.policies.Constant, lr: 0.1}\n")
    first = train(tmp_path / "run", f"lr_policy_file={path}")
    assert train(tmp_path / "run", f"lr_policy_file={path}") == first
    path.write_text("{_target_: lrbench_pl.policies.Constant, lr: 0.2}\n")
    refused = train(tmp_path / "run", f"lr_policy_file={path}")
    assert refused.status == "failed"
    assert "lr_policy.lr: 0.1 -> 0.2" in refused.message
    assert RunResult.read(tmp_path / "run" / "result.json") == first
    assert "lr=0.2" in train(tmp_path / "other", f"lr_policy_file={path}").policy_repr


def test_data_that_moved_are_the_same_run(tmp_path):
    first = train(tmp_path / "run", "dataset.download=true")
    assert first.settings["model.hidden"] == [64]
    assert first.task == spec("max_steps=40", "check_every=10", "batch_size=32").task
    again = train(tmp_path / "run", f"dataset.root={tmp_path}/moved")
    assert again == first
    other = train(tmp_path / "run", "optimizer.weight_decay=0.1")
    assert "another configuration: optimizer.weight_decay: 0 -> 0.1" in other.message


def test_the_record_holds_the_specification(tmp_path):
    its = spec("lr_policy=tri")
    Record(its.run_id, its.to_dict(), "now", "here", 1).write(tmp_path)
    found = Record.read(tmp_path)
    assert RunSpec.from_dict(found.configuration) == its
    assert differences(found.configuration, its.to_dict()) == []


# -- what is pooled ------------------------------------------------------------------------------------------

DIFFERENT = [
    ("optimizer.weight_decay=0.1", "optimizer.weight_decay", ["0.0", "0.1"]),
    ("optimizer.momentum=0.5", "optimizer.momentum", ["0.5", "0.9"]),
    ("model.hidden=[32]", "model.hidden", ["[32]", "[64]"]),
    ("param_groups=[{params: '*.bias', lr_scale: 2.0}]", "param_groups", None),
    ("trainer.precision=bf16-mixed", "trainer.precision", ["32-true", "bf16-mixed"]),
    ("lr_policy.period=100", "lr_policy.period", ["100", "200"]),
]


@pytest.mark.parametrize(("override", "key", "values"), DIFFERENT)
def test_other_settings_are_not_pooled(tmp_path, override, key, values):
    for seed in range(3):
        write(tmp_path / f"a{seed}", "lr_policy=tri", f"seed={seed}")
        write(tmp_path / f"b{seed}", "lr_policy=tri", f"seed={seed + 3}", override, steps=200)
    runs = load_runs([tmp_path])
    with pytest.raises(AnalysisError, match=rf"the runs differ in {key} \(.*--by policy,{key} or"):
        rank(runs.table)
    table = rank(runs.table, ["policy", key])
    assert sorted(zip(table["runs"], table["median_steps"], strict=True)) == [(3, 100.0), (3, 200.0)]
    if values is not None:
        assert sorted(str(value) for value in table[key]) == values
    with pytest.raises(AnalysisError, match=rf"these differ in {key} \(.*--where {key}=VALUE"):
        verify(tmp_path, {"policy": "tri"})
    assert key in report(runs, ["policy", key])


def test_verify_takes_a_setting(tmp_path):
    for seed in range(3):
        write(tmp_path / f"a{seed}", "lr_policy=tri", f"seed={seed}")
        write(tmp_path / f"b{seed}", "lr_policy=tri", f"seed={seed}", "optimizer.weight_decay=0.1", steps=200)
    seeds, _ = verify(tmp_path, {"optimizer.weight_decay": "0.1"})
    assert [row.steps_to_target for row, _ in seeds.runs] == [200, 200, 200]
    with pytest.raises(AnalysisError, match=r"or a setting of the runs \(.*, got 'optimizer.wd'"):
        verify(tmp_path, {"optimizer.wd": "0.1"})


@pytest.mark.parametrize("override", ["mode=min", "confirmations=2"])
def test_verify_looks_at_the_whole_task(tmp_path, override):
    write(tmp_path / "a", "seed=0")
    write(tmp_path / "b", "seed=1", override)
    with pytest.raises(AnalysisError, match=f"these differ in {override.partition('=')[0]} "):
        verify(tmp_path, {})


def test_two_optimizers_have_different_settings_by_nature(tmp_path):
    for seed in range(2):
        write(tmp_path / f"a{seed}", f"seed={seed}", "optimizer=adam")
        write(tmp_path / f"b{seed}", f"seed={seed}")
        write(tmp_path / f"c{seed}", f"seed={seed}", "lr_policy=tri")
    runs = load_runs([tmp_path]).table
    assert rank(runs)["runs"].to_list() == [2, 2, 2]
    with pytest.raises(AnalysisError, match=r"differ in optimizer \(adam, momentum\).*--by policy,optimizer or"):
        rank(runs, ["policy"])
    write(tmp_path / "d", "seed=5", "optimizer.momentum=0.5")
    with pytest.raises(AnalysisError, match=r"optimizer.momentum \(0.5, 0.9\).*--by policy,optimizer,lr,optimizer.mo"):
        rank(load_runs([tmp_path]).table, ["policy", "optimizer", "lr"])


def test_unknown_settings_are_compared_with_anything(tmp_path):
    write(tmp_path / "a", "seed=0")
    write(tmp_path / "b", "seed=1", settings=None)
    assert rank(load_runs([tmp_path]).table)["runs"].to_list() == [2]
    assert len(verify(tmp_path, {})[0].runs) == 2
    with pytest.raises(AnalysisError, match=r"or settings of the runs \(.*got 'model.depth'"):
        rank(load_runs([tmp_path]).table, ["policy", "model.depth"])


def test_each_model_has_its_own_ranks(tmp_path):
    for seed in range(3):
        for policy, steps in (("tri", 100), ("cosine", 200)):
            for hidden in (32, 64):
                name = f"{policy}{seed}{hidden}"
                write(tmp_path / name, f"lr_policy={policy}", f"seed={seed}", f"model.hidden=[{hidden}]", steps=steps)
    table = rank(load_runs([tmp_path]).table, ["model.hidden", "policy"])
    assert table.select("model.hidden", "policy", "rank").rows() == [
        ("[32]", "tri", 1),
        ("[32]", "cosine", 2),
        ("[64]", "tri", 1),
        ("[64]", "cosine", 2),
    ]


def test_db_list_keeps_tasks_apart(tmp_path):
    changes = [(), ("optimizer.weight_decay=0.1",), ("confirmations=2",), ("mode=min",)]
    rows = [write(tmp_path / str(n), f"seed={n}", *more).to_dict() for n, more in enumerate(changes)]
    table = listing([*rows, {**rows[0], "seed": 9}])
    assert sorted(table["runs"]) == [1, 1, 1, 2]
    headings = [heading for heading, _, _ in sections(table)]
    assert len(set(headings)) == 4
    assert any("optimizer.weight_decay=0.1" in heading for heading in headings)
    assert any("2 consecutive checks" in heading for heading in headings)
    assert any("smaller is better" in heading for heading in headings)
    assert "settings" in table.columns
    assert isinstance(table, pl.DataFrame)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=3", (0.0, ())),
        ("lr_policy=tri", (0.0, ())),
        ("confirmations=2", (0.5, ("confirmations 2 instead of 1",))),
        ("optimizer.weight_decay=0.1", (0.5, ("optimizer.weight_decay 0.1 instead of 0",))),
        ("model.hidden=[32]", (0.5, ("model.hidden [32] instead of [64]",))),
        ("+dataset.noise=0.2", (0.5, ("dataset.noise 0.2 instead of unset",))),
        ("optimizer=nesterov", (1.0, ("optimizer nesterov instead of momentum",))),
        ("batch_size=128", (1.0, ("batch size 128 instead of 64",))),
        ("mode=min", "another mode"),
    ],
)
def test_the_look_up_sees_the_whole_task(tmp_path, override, expected):
    query = Query.from_task(spec().task)
    if isinstance(expected, str):
        with pytest.raises(UnsuitableError, match=expected):
            distance(query, write(tmp_path, override))
    else:
        assert distance(query, write(tmp_path, override)) == expected
    assert distance(replace(query, settings=None), write(tmp_path, "optimizer.weight_decay=0.1")) == (0.0, ())


KEYS = ["compile", "model.a", "optimizer.b", "lr_policy.c"]


@given(
    some.lists(
        some.one_of(
            some.none(),
            some.dictionaries(
                some.sampled_from(["compile", "model.a", "optimizer.b", "lr_policy.c"]), some.integers(0, 2)
            ),
        ),
        max_size=5,
    )
)
def test_equal_settings_do_not_differ_and_the_order_does_not_matter(settings_):
    found = differing(settings_)
    assert found == differing(settings_[::-1])
    known = [each for each in settings_ if each]
    for key, values in found.items():
        assert len(values) > 1
        assert len({canonical(each.get(key)) for each in known}) > 1
    assert not differing([*known[:1], *known[:1], None])


def test_a_run_id_does_not_depend_on_how_a_number_is_written():
    cfg = compose([])
    other = OmegaConf.merge(cfg, {"optimizer": {"weight_decay": 0}, "dataset": {"pad": 0.0}})
    assert RunSpec.from_config(cfg).run_id == RunSpec.from_config(other).run_id
    assert Path(spec("workload={_target_: my.Own}").task.model).name == "my.Own"
