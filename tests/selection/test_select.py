"""The plan of a selection, against trainings that are formulas."""

import math
from collections import Counter

import pytest

from lrbench_pl.selection.select import horizons, select
from lrbench_pl.selection.trials import Candidate, Selection, SelectionOptions, SelectionTask, TrialResult

POOL = SelectionOptions(shapes=("fix", "linear", "cosine", "tri"), rates=(1.0, 0.5))
TASK = SelectionTask(max_steps=1000, interval=10, optimizers={"sgd": 0.1})
NEEDED = {"fix": 900, "linear": 210, "cosine": 130, "tri": 400}  # steps to the target at a rate of 0.1


def formula(job, needed=NEEDED, limit=0.3):
    """A training that reaches its target after a known number of steps, more the further its rate is from 0.1."""
    lr = job.candidate.lr
    if job.kind == "range":
        rates = [lr / 100 * 10_000 ** (t / (job.horizon - 1)) for t in range(job.horizon)]
        return TrialResult(
            "missed", job.horizon, losses=tuple(2 - math.tanh(5 * r) if r < limit else math.inf for r in rates)
        )
    if lr > limit:
        return TrialResult("diverged", 5, message="the training loss became non-finite at step 5", seconds=0.5)
    steps = needed[job.candidate.policy] * (1 + abs(math.log(lr / 0.1)))
    value = job.horizon / (job.horizon + steps)
    if job.horizon >= steps:
        return TrialResult("reached", job.horizon, job.horizon, value, 1.0)
    return TrialResult("missed", job.horizon, None, value, 1.0)


def play(options=POOL, task=TASK, training=formula):
    """Run the plan to its end: the batches that it asked for, and what it found."""
    found = Selection()
    plan = select(options, task, found)
    batches, jobs = [], next(plan)
    while jobs is not None:
        assert found.steps + sum(job.horizon for job in jobs) <= options.tuning_budget * task.max_steps
        batches.append(jobs)
        try:
            jobs = plan.send([training(job) for job in jobs])
        except StopIteration:
            jobs = None
    return batches, found


def change(options=POOL, **fields):
    return SelectionOptions(**{**vars(options), **fields})


def kinds(batches):
    return [jobs[0].kind for jobs in batches]


def test_the_known_best_is_found_at_the_horizon_that_it_needs():
    _, found = play(change(repeats=0, bisections=10))
    assert (found.winner, found.horizon, found.status) == (Candidate("cosine", "sgd", 0.1), 130, "reached")
    assert (found.confirmed, found.asked) == (2, 2)
    assert found.ranking[0].candidate == found.winner


def test_rungs_are_complete_short_policies_of_which_the_better_half_goes_on():
    batches, found = play(change(repeats=0))
    rungs = [jobs for jobs in batches if jobs[0].kind == "rung"]
    assert [(jobs[0].horizon, len(jobs)) for jobs in rungs] == [(30, 8), (60, 4), (120, 2), (250, 1)]
    assert all({job.horizon for job in jobs} == {jobs[0].horizon} for jobs in rungs)
    assert {job.candidate.policy for job in rungs[2]} == {"cosine", "linear"}
    assert kinds(batches) == ["rung"] * 4 + ["confirm", "shorten", "shorten"]
    assert [jobs[0].horizon for jobs in batches[5:]] == [180, 150]  # between the miss at 120 and the success at 250
    assert found.horizon == 150


def test_all_candidates_of_a_rung_share_seeds_and_confirmation_takes_fresh_ones():
    task = SelectionTask(1000, 10, {"sgd": 0.1}, seeds=(3, 5))
    batches, _ = play(change(repeats=0, tuning_budget=20.0), task)
    for jobs in batches:
        if jobs[0].kind == "rung":
            of = {job.candidate: [other.seed for other in jobs if other.candidate == job.candidate] for job in jobs}
            assert all(seeds == [3, 5] for seeds in of.values())
        else:
            assert [job.seed for job in jobs] == [6, 7]


def test_the_cost_is_counted_per_trial():
    batches, found = play(change(repeats=0))
    jobs = [job for batch in batches for job in batch]
    assert found.steps == sum(job.horizon for job in jobs)
    assert found.jobs == len(jobs)
    assert found.seconds == len(jobs)
    rungs = 8 * 30 + 4 * 60 + 2 * 120 + 250
    assert (found.steps_to_first, found.steps_to_confirmed) == (rungs, rungs + 2 * 250)


def test_the_first_to_reach_counts_the_jobs_before_it_alone():
    """The other jobs of its batch come after it."""
    _, found = play(
        change(repeats=0, shapes=("fix", "cosine", "tri")), training=lambda job: formula(job, {**NEEDED, "cosine": 30})
    )
    assert found.steps_to_first == 30 + 30  # fix, then cosine


def test_rates_come_from_the_range_test_and_what_diverged_is_avoided():
    batches, found = play()
    assert kinds(batches)[:2] == ["range", "rung"]
    assert [(job.horizon, job.seed) for job in batches[0]] == [(50, 0), (50, 1)]
    test = found.ranges["sgd"]
    assert test.peak < test.high < 0.3 <= test.diverged_at
    assert {job.candidate.lr for job in batches[1]} == {float(f"{share * test.peak:.3g}") for share in (1.0, 0.5)}
    assert found.avoided[0] == f"sgd at {test.diverged_at:.3g} and above: the range test diverged"
    assert found.lines[0].startswith("range test: sgd 0.0")


def test_a_rate_above_the_usable_ones_is_not_tried():
    batches, found = play(change(rates=(1.0, 30.0)))
    assert len(batches[1]) == 4
    assert sum("above the usable rates" in words for words in found.avoided) == 4


def test_a_range_test_that_tells_nothing_leaves_the_own_rate():
    def training(job):
        return TrialResult("diverged", 1, losses=(math.nan,)) if job.kind == "range" else formula(job)

    batches, found = play(training=training)
    assert {job.candidate.lr for job in batches[1]} == {0.1, 0.05}
    assert "the range test of sgd: the training diverged at a rate of 0.001" in found.avoided[0]
    assert "its own rate 0.1 is used" in found.avoided[0]


@pytest.mark.parametrize(
    ("options", "task"),
    [
        pytest.param(POOL, SelectionTask(300, 10, {"sgd": 0.1}), id="budget-too-small-for-it"),
        pytest.param(POOL, SelectionTask(1000, 10, {"sgd": 0.1}, rates=(0.1, 0.05)), id="rates-given"),
        pytest.param(change(repeats=0), TASK, id="none-wanted"),
    ],
)
def test_without_a_range_test_the_rates_are_the_optimizers_or_those_given(options, task):
    batches, _ = play(options, task)
    assert kinds(batches)[0] == "rung"
    assert {job.candidate.lr for job in batches[0]} == {0.1, 0.05}


def test_candidates_that_diverge_go_no_further_and_the_reason_is_told():
    batches, found = play(change(repeats=0, rates=(1.0, 5.0), eta=1.5))
    tried = Counter(job.candidate for batch in batches for job in batch)
    assert all(count == 1 for candidate, count in tried.items() if candidate.lr == 0.5)
    words = [words for words in found.avoided if "at 0.5 (sgd)" in words]
    assert len(words) == 4
    assert all("over 30 steps: the training loss became non-finite at step 5" in said for said in words)
    assert found.winner.policy == "cosine"


def test_if_all_diverge_nothing_is_recommended():
    _, found = play(change(repeats=0, rates=(5.0,)))
    assert (found.winner, found.status, found.jobs) == (None, "missed", 4)


def test_a_target_out_of_reach_ends_with_the_best_of_the_whole_budget():
    needed = {name: 10 * steps for name, steps in NEEDED.items()}
    batches, found = play(change(repeats=0), training=lambda job: formula(job, needed))
    assert (found.status, found.winner, found.horizon) == ("missed", Candidate("cosine", "sgd", 0.1), 1000)
    assert kinds(batches) == ["rung"] * 6
    assert batches[-1][0].horizon == 1000
    assert found.steps_to_first is None


@pytest.mark.parametrize("share", [0.001, 0.03, 0.1, 0.24, 0.5, 1.0, 2.0])
def test_the_tuning_budget_is_never_exceeded(share):
    """``play`` sees to it before each batch."""
    for seeds in ((0,), (0, 1)):
        options = change(tuning_budget=share)
        if share * 1000 < 30 * len(seeds):
            with pytest.raises(StopIteration):
                play(options, SelectionTask(1000, 10, {"sgd": 0.1}, seeds))
            continue
        _, found = play(options, SelectionTask(1000, 10, {"sgd": 0.1}, seeds))
        assert found.steps <= share * 1000
        if share < 1:
            assert any("the tuning budget of" in words for words in found.avoided)
        assert found.winner is not None


def test_a_lucky_seed_is_no_answer():
    """Linear reaches early with seed 0 alone; cosine does with every seed, at a longer horizon."""

    def training(job):
        lucky = job.candidate.policy == "linear" and job.seed == 0
        return formula(job, {**NEEDED, "linear": 30 if lucky else 2000})

    _, found = play(change(repeats=0), training=training)
    assert found.winner == Candidate("cosine", "sgd", 0.1)
    assert found.confirmed == 2
    assert "linear at 0.1 (sgd) over 30 steps: reached the target on 0 of 2 fresh seeds" in found.avoided


def test_of_two_that_are_equally_unsure_the_shorter_is_the_answer():
    """Each reaches on its own seed and on one of two fresh ones."""
    _, found = play(
        change(repeats=0, tuning_budget=10.0),
        training=lambda job: formula(job) if job.seed < 2 else TrialResult("missed", job.horizon, None, 0.1),
    )
    assert (found.winner.policy, found.horizon, found.confirmed, found.asked) == ("cosine", 250, 1, 2)
    assert sum("reached the target on 1 of 2 fresh seeds" in words for words in found.avoided) == 3  # 250, 500, 1000


def test_an_answer_that_could_not_be_confirmed_says_so():
    batches, found = play(change(repeats=0, tuning_budget=0.98))
    assert (found.status, found.winner.policy, found.confirmed, found.asked) == ("reached", "cosine", 0, 0)
    assert found.steps_to_confirmed is None
    assert kinds(batches)[-1] == "rung"
    assert any(
        "confirming cosine at 0.1 (sgd) on 2 more seeds: beyond the tuning budget" in words for words in found.avoided
    )


def test_the_answer_names_the_optimizer():
    task = SelectionTask(1000, 10, {"sgd": 0.1, "adam": 0.002}, rates=(0.1,))

    def training(job):
        return formula(job, NEEDED if job.candidate.optimizer == "adam" else {name: 2000 for name in NEEDED})

    _, found = play(task=task, training=training)
    assert str(found.winner) == "cosine at 0.1 (adam)"
    assert {standing.candidate.optimizer for standing in found.ranking} == {"sgd", "adam"}


def test_policies_from_files_come_first_and_bring_their_rates():
    task = SelectionTask(1000, 10, {"sgd": 0.1}, files=(("a/policy.yaml", "sgd"),))
    batches, found = play(
        change(repeats=0),
        task,
        lambda job: TrialResult("reached", 20, 20, 0.9) if job.candidate.lr is None else formula(job),
    )
    assert batches[0][0].candidate == Candidate("a/policy.yaml", "sgd")
    assert str(found.winner) == "a (sgd)"


def test_less_is_better_in_mode_min():
    """The values of the formula grow with the steps: as an error, the slowest is best."""
    task = SelectionTask(1000, 10, {"sgd": 0.1}, mode="min")
    _, found = play(change(repeats=0), task, lambda job: TrialResult("missed", job.horizon, None, formula(job).value))
    assert found.winner == Candidate("fix", "sgd", 0.05)


def test_without_confirmation_the_first_to_reach_is_taken():
    batches, found = play(change(repeats=0, confirm=0, bisections=0))
    assert set(kinds(batches)) == {"rung"}
    assert (found.status, found.horizon, found.asked) == ("reached", 250, 0)


def test_the_plan_is_a_function_of_the_results():
    first, again = play(), play()
    assert first[0] == again[0]
    assert first[1] == again[1]


@pytest.mark.parametrize(("max_steps", "interval"), [(1000, 10), (1000, 1000), (997, 10), (100, 30), (70_000, 500)])
def test_horizons_are_whole_intervals_that_grow_to_the_budget(max_steps, interval):
    found = horizons(SelectionOptions(), max_steps, interval)
    assert all(steps % interval == 0 for steps in found)
    assert found == sorted(set(found))
    assert max_steps - interval < found[-1] <= max_steps


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"shapes": ()}, r"shapes must be a list of at least one, got \(\)"),
        ({"shapes": "cosine"}, "shapes must be a list of at least one, got 'cosine'"),
        ({"rates": (0.0,)}, r"rates must be finite numbers above 0, got 0\.0"),
        ({"rates": 0.1}, r"rates must be a list of at least one, got 0\.1"),
        ({"repeats": -1}, "repeats must be an integer of at least 0, got -1"),
        ({"first": 0.0}, r"first must lie in \(0, 1\], got 0\.0"),
        ({"growth": 1.0}, r"growth must be a finite number above 1, got 1\.0"),
        ({"eta": 1}, "eta must be a finite number above 1, got 1"),
        ({"confirm": 0.5}, r"confirm must be an integer of at least 0, got 0\.5"),
        ({"bisections": -1}, "bisections must be an integer of at least 0"),
        ({"tuning_budget": 0}, "tuning_budget must be a finite number above 0, got 0"),
    ],
)
def test_an_option_out_of_range_is_named(field, message):
    with pytest.raises(ValueError, match=message):
        SelectionOptions(**field)


def test_a_budget_without_a_check_is_refused():
    with pytest.raises(ValueError, match=r"check_every must not exceed max_steps \(10\), got 20"):
        SelectionTask(10, 20, {"sgd": 0.1})


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"lr must be finite numbers above 0, got -1\.0"):
        SelectionTask(10, 5, {"sgd": 0.1}, rates=(0.1, -1.0))
