"""The composer on a short budget, on which peaks are compared from one snapshot."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from lrbench_pl.callbacks.composer import LRPolicyComposer
from lrbench_pl.policies import to_config
from tests.callbacks.test_composer import OWN, Save, fit, plain, weights
from tests.helpers import TinyModule, blobs, script, tiny_trainer

NET = ("model=mlp", *OWN, "~model.hidden", "~model.input_shape", "dataset.flip=true")


@pytest.mark.slow
@pytest.mark.parametrize("better", ["higher", "lower"])
def test_the_composed_policy_alone_reproduces_the_training_bitwise(tmp_path, monkeypatch, better):
    """Two peaks are trained over the same steps of the policy; only the better one is kept."""
    from omegaconf import OmegaConf

    seen = {10: 0.2, 20: 0.5, 30: 0.45, 40: 0.52, 50: 0.45, 60: 0.55 if better == "lower" else 0.51}
    monitor = script(monkeypatch, lambda step: seen.get(step, 0.9 if step >= 250 else 0.6 + step / 1e4))
    composed = fit(*NET, "lr_policy=auto", "target=0.8", monitor)
    composer = composed.verifier
    assert composer.verdict.status == "reached"
    tried = [record for record in composer.records if record["policy_step"] == 30 and record["steps"] == 10]
    assert [record["value"] for record in tried] == [seen[40], seen[60]]
    assert [record["kept"] for record in tried] == [better == "higher", better == "lower"]
    path = [record for record in composer.records if record["kept"]]
    assert path[0]["policy_step"] == 0
    assert all(a["policy_step"] + a["steps"] == b["policy_step"] for a, b in itertools.pairwise(path))
    assert composer.tuning_steps == sum(record["steps"] for record in composer.records if not record["kept"]) > 0
    OmegaConf.save(OmegaConf.create(to_config(composer.realised())), tmp_path / "policy.yaml")
    alone = fit(
        *NET, monitor, f"lr_policy_file={tmp_path}/policy.yaml", f"max_steps={composer.policy_step}", "target=null"
    )
    theirs = weights(alone)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(composed).items())


@pytest.mark.filterwarnings("ignore:the training loader has no `position`")
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(
    "at",  # the first decay, the higher peak, later decays
    [10, 18, *(pytest.param(at, marks=pytest.mark.slow) for at in (33, 58))],
)
def test_a_composition_resumes_where_it_stopped(tmp_path, at):
    given = {"repeats": None, "steps": 200, "check_every": 4, "optimizer_lr": 0.01}
    whole = plain(None, Save(tmp_path / "a.ckpt", at), **given)
    resumed = plain(tmp_path / "a.ckpt", **given)
    kept = [(record["kind"], record["policy_step"], record["spent"], record["steps"]) for record in resumed.records]
    count = sum(record["spent"] + record["steps"] <= at for record in whole.records)
    assert [(r["kind"], r["policy_step"], r["spent"], r["steps"]) for r in whole.records][: count + 1] == kept[
        : count + 1
    ]
    assert resumed.verdict.steps_run == whole.verdict.steps_run == 200


def test_a_plain_loader_is_composed_with_and_the_consequence_is_named():
    class Module(TinyModule):
        def train_dataloader(self):
            return DataLoader(blobs(64), batch_size=8, shuffle=True)

        def validation_step(self, batch, batch_idx):
            self.log("val/accuracy", 0.1 - 1e-6 * self.trainer.global_step)

    composer = LRPolicyComposer(target=0.9, max_steps=200)
    with pytest.warns(
        UserWarning, match="its data cannot be rewound: composing works, but from the first abandoned step"
    ):
        tiny_trainer(composer, max_steps=200, val_check_interval=4).fit(Module())
    assert composer.verdict.status == "missed"
    assert composer.avoided
    assert any(record["spent"] > record["policy_step"] for record in composer.records)
