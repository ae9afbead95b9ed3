"""Tables: what is encoded how, by which rows, and what is refused."""

from functools import partial

import numpy as np
import polars
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from sklearn.datasets import load_diabetes, load_wine
from torch import nn

from lrbench_pl.callbacks.lr_policy import LRPolicyCallback
from lrbench_pl.policies import Cyclic
from lrbench_pl.workloads.classifier import Classifier
from lrbench_pl.workloads.data import DataError, TableDataModule
from lrbench_pl.workloads.models import mlp
from lrbench_pl.workloads.regressor import Regressor
from tests.helpers import tiny_trainer

SGD = partial(torch.optim.SGD, lr=99.0, momentum=0.9)


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    """Scikit-learn's wines: 178 rows of 13 numbers, three classes."""
    found = load_wine()
    table = polars.DataFrame(found.data, schema=list(found.feature_names))
    path = tmp_path_factory.mktemp("wine") / "wine.csv"
    table.with_columns(cultivar=polars.Series([f"barolo {label}" for label in found.target])).write_csv(path)
    return path


@pytest.fixture(scope="module")
def diabetes(tmp_path_factory):
    """Scikit-learn's diabetes: 442 rows of 10 numbers, a number to predict."""
    found = load_diabetes(scaled=False)
    table = polars.DataFrame(found.data, schema=list(found.feature_names))
    path = tmp_path_factory.mktemp("diabetes") / "diabetes.parquet"
    table.with_columns(progression=found.target).write_parquet(path)
    return path


def written(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def module(path, target, **changes):
    return TableDataModule(str(path), target, **{"batch_size": 8, **changes})


def rows_of(n, line):
    return "\n".join(line(i) for i in range(n)) + "\n"


# -- what is encoded how --------------------------------------------------------------------------------------


def test_numbers_are_standardised_by_the_training_part_alone(wine):
    encoded = module(wine, "cultivar", seed=3).encoded
    columns = load_wine().data
    train = encoded.train.numpy()
    expected = (columns - columns[train].mean(0)) / columns[train].std(0)
    np.testing.assert_allclose(encoded.features, expected, atol=1e-5)
    assert encoded.features.dtype == torch.float32
    assert encoded.classes == ("barolo 0", "barolo 1", "barolo 2")
    assert encoded.target.tolist() == load_wine().target.tolist()


def test_categories_are_those_of_the_training_part_and_others_are_zeros(tmp_path):
    path = written(
        tmp_path, "kind,flag,code,y\n" + rows_of(40, lambda i: f"{'abc'[i % 3]},{i % 2 == 0},{i % 4},{i % 2}")
    )
    with path.open("a") as file:
        file.write("only once,true,9,1\n")
    for seed in range(30):  # among them one that holds out the last row
        samples = module(path, "y", categorical=["code"], seed=seed)
        if 40 in samples.encoded.train:
            continue
        names = samples.encoded.names
        assert names == ("kind=a", "kind=b", "kind=c", "flag", "code=0", "code=1", "code=2", "code=3")
        features = samples.encoded.features
        assert features[0].tolist() == [1, 0, 0, pytest.approx(features[0, 3]), 1, 0, 0, 0]
        assert features[40, [0, 1, 2, 4, 5, 6, 7]].tolist() == [0] * 7
        assert samples.input_shape == (8,)
        return
    pytest.fail("no seed held out the last row")


def test_a_column_that_is_constant_in_the_training_part_is_zero(tmp_path):
    path = written(tmp_path, "a,b,y\n" + rows_of(30, lambda i: f"0.1,{i},{i % 2}"))
    assert not module(path, "y").encoded.features[:, 0].any()


def test_a_target_of_regression_is_standardised_and_its_unit_is_known(diabetes):
    samples = module(diabetes, "progression", task="regression")
    train, target = samples.encoded.train, load_diabetes().target
    assert samples.encoded.target_std == pytest.approx(target[train].std())
    back = samples.encoded.target * samples.encoded.target_std + samples.encoded.target_mean
    np.testing.assert_allclose(back, target, rtol=1e-5)
    assert samples.num_classes == 1


def test_parquet_and_csv_are_one_table(wine, tmp_path):
    other = tmp_path / "wine.parquet"
    polars.read_csv(wine).write_parquet(other)
    one, two = module(wine, "cultivar").encoded, module(other, "cultivar").encoded
    assert torch.equal(one.features, two.features)
    assert torch.equal(one.target, two.target)


def test_a_tsv_file_is_separated_by_tabs(wine, tmp_path):
    path = tmp_path / "wine.tsv"
    polars.read_csv(wine).write_csv(path, separator="\t")
    assert torch.equal(module(path, "cultivar").encoded.features, module(wine, "cultivar").encoded.features)


def test_separators_headers_and_columns_to_leave_out(tmp_path):
    path = written(tmp_path, rows_of(30, lambda i: f"id{i};{i};{i % 2}"))
    samples = module(path, "column_3", separator=";", header=False, drop=["column_1"])
    assert (samples.encoded.names, samples.encoded.classes) == (("column_2",), (0, 1))


# -- the parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_parts_are_disjoint_and_chosen_by_the_seed(wine, diabetes, task):
    path, target = (wine, "cultivar") if task == "classification" else (diabetes, "progression")
    one, again, other = (
        module(path, target, task=task, seed=seed, validation=20, test=30).encoded for seed in (0, 0, 1)
    )
    parts = [one.train, one.validation, one.test]
    assert sorted(torch.cat(parts).tolist()) == list(range(len(one.target)))
    assert [len(part) for part in parts[1:]] == [20, 30]
    assert torch.equal(one.test, again.test)
    assert not torch.equal(one.test, other.test)


def test_classes_have_their_share_of_each_part(wine):
    encoded = module(wine, "cultivar", validation=0.2, test=0.2).encoded
    whole = torch.bincount(encoded.target) / len(encoded.target)
    for part in (encoded.train, encoded.validation, encoded.test):
        torch.testing.assert_close(torch.bincount(encoded.target[part]) / len(part), whole, atol=0.03, rtol=0)


def test_checks_on_the_test_part_leave_no_validation_part(wine):
    samples = module(wine, "cultivar", check_on="test")
    assert not len(samples.encoded.validation)
    checked, tested = (
        torch.cat([y for _, y in loader()]) for loader in (samples.val_dataloader, samples.test_dataloader)
    )
    assert torch.equal(checked, tested)


def test_loaders_show_the_rows_of_their_part(wine):
    samples = module(wine, "cultivar", batch_size=144, test=17, validation=17)
    inputs, labels = next(samples.train_dataloader())
    order = samples.encoded.train[inputs[:, 0].argsort(stable=True).argsort(stable=True)]  # 144: all training rows
    assert len(order) == len(samples.encoded.train) == 144
    key = lambda x, y: sorted((*row, label) for row, label in zip(x.tolist(), y.tolist(), strict=True))  # noqa: E731
    encoded = samples.encoded
    assert key(inputs, labels) == key(encoded.features[encoded.train], encoded.target[encoded.train])
    fixed = torch.cat([x for x, _ in samples.train_eval_dataloader()])
    assert sorted(fixed.tolist()) == sorted(encoded.features[encoded.train].tolist())


# -- training -------------------------------------------------------------------------------------------------


def test_the_rmse_is_in_the_unit_of_the_target(diabetes):
    samples = module(diabetes, "progression", task="regression")
    net = nn.Sequential(nn.Linear(10, 1))
    nn.init.zeros_(net[0].weight)
    nn.init.zeros_(net[0].bias)  # the mean of the training part, whatever the row
    found = tiny_trainer().test(Regressor(net, SGD), samples, verbose=False)[0]
    target = load_diabetes().target
    errors = target[samples.encoded.test] - target[samples.encoded.train].mean()
    assert found["test/rmse"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-5)
    assert found["test/loss"] == pytest.approx((errors**2).mean() / target[samples.encoded.train].var(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_resumed_run_is_the_unbroken_one_to_the_last_bit(wine, diabetes, task, tmp_path):
    path, target, monitor, mode = {
        "classification": (wine, "cultivar", "val/accuracy", "max"),
        "regression": (diabetes, "progression", "val/rmse", "min"),
    }[task]

    def train(**arguments):
        samples = module(path, target, task=task, batch_size=40)
        torch.manual_seed(0)
        net = mlp(samples.num_classes, samples.input_shape, hidden=[8])
        checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=7, save_top_k=-1, filename="{step}")
        policy = LRPolicyCallback(
            Cyclic(base_lr=0.001, max_lr=0.05, period=8, wave="triangle"), monitor=monitor, mode=mode
        )
        trainer = tiny_trainer(policy, checkpoint, max_steps=17, val_check_interval=5, enable_checkpointing=True)
        fitted = samples.module_class(net, SGD, samples.num_classes)
        trainer.fit(fitted, datamodule=samples, **arguments)
        return trainer.callback_metrics[monitor], fitted.state_dict()

    (value, whole), (again, resumed) = train(), train(ckpt_path=tmp_path / "step=7.ckpt", weights_only=False)
    assert value == again
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_module_follows_the_task(wine, diabetes):
    assert module(wine, "cultivar").module_class is Classifier
    assert module(diabetes, "progression", task="regression").module_class is Regressor


def test_a_model_with_several_outputs_is_no_regression(diabetes):
    samples = module(diabetes, "progression", task="regression")
    with pytest.raises(ValueError, match=r"output of shape \(1, 3\), but a regression takes \(1, 1\)"):
        tiny_trainer().fit(Regressor(nn.Linear(10, 3), SGD), samples)


# -- what is refused ------------------------------------------------------------------------------------------

GOOD = "size,kind,y\n" + rows_of(30, lambda i: f"{i},{'ab'[i % 2]},{i % 2}")


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (GOOD.replace("\n7,b", "\n,b").replace("\n9,b", "\n?,b"), {}, r"'size' \(2 of 30 rows, the first in row 8\)"),
        (GOOD.replace("\n7,b,1", "\n7,b,"), {}, r"values are missing in 1 column: 'y' \(1 of 30 rows"),
        (GOOD.replace("\n7,b", "\ninf,b"), {}, "'size' must hold finite numbers, got inf in row 8"),
        (
            GOOD,
            {"target": "price"},
            "dataset.target must name a column of .*, got 'price'; there are 'size', 'kind', 'y'",
        ),
        (GOOD, {"target": None}, "dataset.target must name a column of .*, got None; .*; set dataset.target=NAME"),
        (GOOD, {"drop": ["id"]}, "dataset.drop must name a column of .*, got 'id'"),
        (GOOD, {"categorical": ["id"]}, "dataset.categorical must name a column of .*, got 'id'"),
        (GOOD.replace(",", ";"), {}, "separated by ';': set \"dataset.separator=';'\""),
        (GOOD, {"target": "kind", "task": "regression"}, "'kind' is String .*set dataset.task=classification"),
        (GOOD.replace("7,b,1", "7,b,0.5"), {}, r"'y' has fractions \(such as 0.5\); choose dataset=table_regression"),
        (GOOD, {"target": "size"}, "'size' has 30 different values in 30 rows, .*dataset=table_regression"),
        (GOOD, {"drop": ["size", "kind"]}, "has no column but the target"),
        (GOOD.replace("a,", "x1,"), {"task": "regression", "test": 31}, "dataset.test must be a share between 0 and 1"),
        ("a,y\n" + rows_of(30, lambda i: f"id{i},{i % 2}"), {}, r"'a' has \d+ different texts .*dataset.drop=\[a\]"),
        ("a,y\n" + rows_of(30, lambda i: f"{i},3"), {"task": "regression"}, "the target 'y' is 3 in every row"),
        (
            "a,y\n" + rows_of(30, lambda i: f"{i},{i == 3}"),
            {"test": 29},
            "the smallest class has 1.*lower dataset.test",
        ),
        ("size,kind,y\n", {}, "has no rows"),
        ("a,b\n1,2,3,4\n", {}, "cannot be read as a table .*; expected a CSV or Parquet file"),
        (GOOD, {"task": "ranking"}, "dataset.task must be 'classification' or 'regression', got 'ranking'"),
        (GOOD, {"batch_size": 25}, "a batch of 25 samples is larger than the training set of 24; lower batch_size"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_one_line(text, changes, message, tmp_path):
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        module(path, **{"target": "y", **changes}).setup()
    assert "\n" not in str(caught.value)


def test_dates_are_refused_by_their_column(tmp_path):
    table = polars.DataFrame({"when": polars.date_range(polars.date(2020, 1, 1), polars.date(2020, 1, 30), eager=True)})
    table.with_columns(y=polars.Series([0, 1] * 15)).write_parquet(tmp_path / "dates.parquet")
    with pytest.raises(DataError, match=r"the column 'when' is Date; convert it, or .*dataset.drop=\[when\]"):
        module(tmp_path / "dates.parquet", "y").setup()


def test_many_missing_columns_are_named_shortly(tmp_path):
    path = written(
        tmp_path, ",".join(f"c{i}" for i in range(20)) + ",y\n" + rows_of(20, lambda i: "," * 20 + f"{i % 2}")
    )
    with pytest.raises(DataError, match=r"missing in 20 columns: 'c0' \(20 of 20 rows.* and 12 more; fill them"):
        module(path, "y").setup()
