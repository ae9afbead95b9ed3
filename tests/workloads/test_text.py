"""Text: contiguous parts, windows that are a function of seed and position, and a language model trained on them."""

from functools import partial
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.policies import Cyclic
from lrbench_pl.workloads.data import DataError, TextDataModule
from lrbench_pl.workloads.data.text import WindowEvalLoader, WindowLoader, WindowStream
from lrbench_pl.workloads.language_model import LanguageModel
from lrbench_pl.workloads.models import GPT, mlp
from tests.helpers import tiny_trainer

LICENCE = Path(__file__).resolve().parents[2] / "LICENSE"
ADAMW = partial(torch.optim.AdamW, lr=99.0)


def data(**changes):
    defaults = {"file": str(LICENCE), "context": 16, "batch_size": 4, "validation": 400, "test": 300}
    return TextDataModule(**{**defaults, **changes})


def model(samples):
    torch.manual_seed(0)
    return GPT(samples.num_classes, samples.context, width=16, depth=2, heads=2)


def written(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode(encoding))
    return str(path)


def shown(loader):
    """The text that a loader lets a model predict, in order."""
    return torch.cat([following.flatten() for _, following in loader])


# -- the parts ------------------------------------------------------------------------------------------------


def test_the_parts_are_contiguous_and_make_up_the_text():
    samples = data()
    samples.setup()
    train, validation, test = ("".join(samples.symbols[i] for i in part.tolist()) for part in samples._parts)
    assert train + validation + test == LICENCE.read_text()
    assert (len(validation), len(test)) == (400, 300)


def test_checks_and_test_predict_each_character_of_their_part_but_the_first_once():
    samples = data()
    for loader, part in ((samples.val_dataloader(), 1), (samples.test_dataloader(), 2)):
        assert torch.equal(shown(loader), samples._parts[part][1:].long())
        assert len(loader) == sum(1 for _ in loader)


def test_a_symbol_is_predicted_from_those_before_it():
    samples = data()
    for symbols, following in (*samples.val_dataloader(), next(samples.train_dataloader())):
        assert torch.equal(symbols[:, 1:], following[:, :-1])


def test_checks_on_the_test_part_leave_no_validation_part():
    samples = data(check_on="test")
    assert torch.equal(shown(samples.val_dataloader()), shown(samples.test_dataloader()))
    assert len(samples._parts[0]) == len(LICENCE.read_text()) - 300


def test_the_training_loss_is_measured_on_windows_of_the_training_part():
    samples = data(train_eval=5)
    batches = list(samples.train_eval_dataloader())
    assert sum(len(symbols) for symbols, _ in batches) == 5
    train = samples._parts[0].long().unfold(0, 16, 1).tolist()
    assert all(window in train for symbols, _ in batches for window in symbols.tolist())


def test_processes_share_the_windows_of_a_check():
    text = torch.arange(50, dtype=torch.uint8)
    starts = torch.arange(0, 49, 8)
    whole = shown(WindowEvalLoader(text, starts, 8, batch_size=3))
    shares = [shown(WindowEvalLoader(text, starts, 8, 3, rank, world_size=2)) for rank in (0, 1)]
    assert sorted(torch.cat(shares).tolist()) == sorted(whole.tolist()) == list(range(1, 50))


def test_characters_beyond_a_byte_and_a_byte_order_mark(tmp_path):
    text = "".join(chr(0x4E00 + i % 300) for i in range(900)) + "é😀"
    samples = data(file=written(tmp_path, text, "utf-8-sig"), validation=100, test=100)
    assert samples.num_classes == 302
    assert samples.symbols[-1] == "😀"
    samples.setup()
    assert "".join(samples.symbols[i] for i in torch.cat(samples._parts).tolist()) == text


# -- the batches ----------------------------------------------------------------------------------------------


def test_an_epoch_shows_each_window_once_and_the_next_cuts_the_text_elsewhere():
    stream = WindowStream(symbols=1003, context=10, seed=0)
    first, second = stream.cut(0, stream.samples), stream.cut(stream.samples, 2 * stream.samples)
    for starts in (first, second):
        assert len(set((starts // 10).tolist())) == stream.samples == 99
        assert len(set((starts % 10).tolist())) == 1
        assert int(starts.max()) + 10 < 1003
    assert first[0] % 10 != second[0] % 10


def test_a_position_has_one_batch_and_another_seed_another():
    loader = data().train_dataloader()
    batches = [next(loader) for _ in range(9)]
    for position in (7, 0, 4):
        loader.position = position
        assert all(torch.equal(a, b) for a, b in zip(next(loader), batches[position], strict=True))
    fresh = data().train_dataloader()
    fresh.load_state_dict({"position": 8})
    assert torch.equal(next(fresh)[0], batches[8][0])
    assert fresh.state_dict() == {"position": 9}
    assert not torch.equal(next(data(seed=1).train_dataloader())[0], batches[0][0])


def test_processes_share_the_batch_of_one():
    text = torch.arange(100, dtype=torch.uint8)
    whole = next(WindowLoader(text, context=5, batch_size=6, seed=0))[0]
    shares = [next(WindowLoader(text, 5, batch_size=3, seed=0, rank=rank, world_size=2))[0] for rank in (0, 1)]
    assert torch.equal(torch.cat(shares), whole)


# -- the module -----------------------------------------------------------------------------------------------


def test_the_loss_is_in_nats_per_character():
    class Uniform(nn.Module):
        def forward(self, symbols):
            return torch.zeros(*symbols.shape, samples.num_classes)

    samples = data()
    module = LanguageModel(Uniform(), ADAMW, samples.num_classes)
    found = tiny_trainer().test(module, samples, verbose=False)[0]
    assert found == {"test/loss": pytest.approx(torch.tensor(samples.num_classes).log().item())}


def test_a_prediction_does_not_see_what_follows():
    samples = data()
    net = model(samples).eval()
    symbols = next(samples.train_dataloader())[0]
    changed = symbols.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % samples.num_classes
    one, two = net(symbols), net(changed)
    assert torch.equal(one[:, :9], two[:, :9])
    assert not torch.equal(one[:, 9:], two[:, 9:])


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_is_the_unbroken_one_to_the_last_bit(tmp_path):
    def train(**arguments):
        samples = data(batch_size=50)  # 10 steps are an epoch: step 7 lies within the first, step 17 in the second
        checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=7, save_top_k=-1, filename="{step}")
        policy = LRPolicyCallback(
            Cyclic(base_lr=0.001, max_lr=0.01, period=8, wave="triangle"), monitor="val/loss", mode="min"
        )
        trainer = tiny_trainer(policy, checkpoint, max_steps=17, val_check_interval=5, enable_checkpointing=True)
        module = LanguageModel(model(samples), ADAMW, samples.num_classes)
        trainer.fit(module, datamodule=samples, **arguments)
        return trainer.callback_metrics["val/loss"], module.state_dict()

    (loss, whole), (again, resumed) = train(), train(ckpt_path=tmp_path / "step=7.ckpt", weights_only=False)
    assert loss == again
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# -- the transformer ------------------------------------------------------------------------------------------


def test_gpt_draws_its_weights_as_gpt2_and_ties_its_embeddings():
    torch.manual_seed(0)
    net = GPT(vocabulary=300, context=64, width=96, depth=8, heads=4)
    block = net.blocks[0]
    assert block.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.contract.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert not block.expand.bias.any()
    assert (block.norm1.weight == 1).all()
    assert sum(p.numel() for p in net.parameters()) == (300 + 64) * 96 + 8 * (12 * 96**2 + 13 * 96) + 2 * 96


def test_gpt_under_bfloat16_is_near_to_float32():
    samples = data()
    net, symbols = model(samples), next(samples.train_dataloader())[0]
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(symbols)
    torch.testing.assert_close(logits.float(), net(symbols), atol=0.02, rtol=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": None}, "context must be an integer of at least 1, got None; a data set of text gives it"),
        ({"depth": 0}, "depth must be an integer of at least 1, got 0$"),
        ({"width": 10, "heads": 4}, r"width must be a multiple of heads \(4\), got 10"),
    ],
)
def test_gpt_refuses_sizes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        GPT(**{"vocabulary": 5, "context": 8, **arguments})


def test_gpt_refuses_more_positions_than_it_has():
    with pytest.raises(ValueError, match="expected at most 8 positions, got 9"):
        GPT(vocabulary=5, context=8, width=4)(torch.zeros(1, 9, dtype=torch.long))


# -- what does not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (mlp(70, (16,)), r"the model cannot take symbols of shape \(16,\): .*text takes a model such as model=gpt"),
        (nn.Embedding(70, 5), r"output of shape \(1, 16, 5\), but text of \d+ symbols takes \(1, 16, \d+\)"),
    ],
)
def test_a_model_for_other_data_is_refused_before_it_trains(net, message):
    samples = data()
    with pytest.raises(ValueError, match=message):
        tiny_trainer().fit(LanguageModel(net, ADAMW, samples.num_classes), samples)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": None}, "dataset.file must name a UTF-8 text file; give dataset.file=PATH"),
        ({"file": "no.txt", "root": "/nowhere"}, "/nowhere/no.txt was not found; expected a UTF-8 text file: set"),
        ({"context": 0}, "dataset.context must be an integer of at least 1, got 0"),
        (
            {"batch_size": 2000},
            "a batch of 2000 samples is larger than the training part of .* characters, \\d+ windows of 16",
        ),
        ({"validation": 1.5}, "dataset.validation must be a share between 0 and 1 or a number .* got 1.5"),
        ({"test": 10**6}, "dataset.test must be a share between 0 and 1 or a number of samples below"),
        ({"test": 1}, "the test part of .* has 1 character; raise dataset.test"),
        ({"check_on": "train"}, "dataset.check_on must be 'validation' or 'test', got 'train'"),
        ({"device": "tpu"}, "dataset.device must be 'auto' or 'cpu', got 'tpu'"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(changes, message):
    with pytest.raises(DataError, match=message) as caught:
        data(**changes).setup()
    assert "\n" not in str(caught.value)


def test_other_encodings_and_empty_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"is no UTF-8 text \(byte 3\); convert it"):
        data(file=written(tmp_path, "cafés" * 9, "latin1")).setup()
    with pytest.raises(DataError, match=r"text\.txt is empty"):
        data(file=written(tmp_path, "")).setup()
