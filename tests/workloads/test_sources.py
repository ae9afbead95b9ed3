"""Where images come from, and what is said when they cannot."""

import gzip
import os
import urllib.error
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision

from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.config import compose
from lrbench_pl.workloads.data import DataError, TensorDataModule, digits, synthetic, torchvision_set
from lrbench_pl.workloads.data.sources import ensure_memory, read_torchvision, stratified_split
from tests.helpers import tiny_trainer
from tests.workloads import numbered

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def real(folder):
    return [
        pytest.mark.realdata,
        pytest.mark.skipif(not (REAL / folder).is_dir(), reason=f"{folder} is not under {REAL}"),
    ]


def archives(root, content=b"not what it was"):
    """Four files with the names of MNIST's."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, _ in torchvision.datasets.MNIST.resources:
        (raw / name).write_bytes(gzip.compress(content))
    return raw


# -- splits ---------------------------------------------------------------------------------------------------


def test_of_each_class_its_share():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100)]
    kept, held_out = stratified_split(labels, 10, seed=0)
    assert labels[held_out].bincount().tolist() == [5, 3, 2]
    assert sorted(torch.cat((kept, held_out)).tolist()) == list(range(100))


def test_the_rest_goes_to_the_largest_remainders():
    labels = torch.arange(3).repeat_interleave(torch.tensor([5, 3, 3]))
    _, held_out = stratified_split(labels, 4, seed=0)
    assert labels[held_out].bincount().tolist() == [2, 1, 1]


def test_the_seed_chooses_the_hold_out():
    labels = torch.arange(200) % 4
    first, again, other = (stratified_split(labels, 40, seed)[1] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (11, "a hold-out of 11 samples leaves nothing of a class to train on (12 samples, the smallest class has 2)"),
        (-1, "a hold-out must be a whole number of samples, got -1"),
        (2.5, "a hold-out must be a whole number of samples, got 2.5"),
    ],
)
def test_a_hold_out_that_cannot_be(held_out, message):
    with pytest.raises(DataError) as error:
        stratified_split(torch.tensor([0] * 10 + [1] * 2), held_out, seed=0)
    assert message in str(error.value)


# -- bundled and made -----------------------------------------------------------------------------------------


def test_digits_are_all_there_whatever_the_seed():
    first, second = (digits("", False, seed) for seed in (0, 1))
    assert len(first.train_images) + len(first.test_images) == 1797
    assert first.train_images.dtype == torch.uint8
    assert int(first.train_images.max()) == 255
    assert not torch.equal(first.test_images, second.test_images)
    whole = [torch.cat((splits.train_images, splits.test_images)).double().sum() for splits in (first, second)]
    assert whole[0] == whole[1]


def test_synthetic_classes_can_be_told_apart_by_their_patterns():
    splits = synthetic("", False, 0, shape=(3, 8, 8), classes=5, train=503, test=50, noise=1.0)
    train, test = (images.flatten(1).double() for images in (splits.train_images, splits.test_images))
    means = torch.stack([train[splits.train_labels == label].mean(0) for label in range(5)])
    assert (torch.cdist(test, means).argmin(1) == splits.test_labels).all()
    assert splits.test_labels.tolist() == [k % 5 for k in range(50)]


# -- real files -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [
        pytest.param("MNIST", (1, 28, 28), (60_000, 10_000), marks=real("MNIST")),
        pytest.param("CIFAR10", (3, 32, 32), (50_000, 10_000), marks=real("cifar-10-batches-py")),
    ],
)
def test_real_sets_are_read_once_and_whole(name, shape, sizes):
    splits = torchvision_set(str(REAL), False, 0, name)
    assert [len(images) for images in splits[::2]] == list(sizes)
    assert splits.train_images.shape[1:] == shape
    assert splits.train_images.dtype == torch.uint8
    assert splits.train_images.is_contiguous()
    assert len(splits.train_labels.unique()) == 10
    assert torchvision_set(str(REAL), False, 1, name) is splits
    conf = compose([f"dataset={name.lower()}"]).dataset
    value, pixels = torch.arange(256) / 255, sizes[0] * shape[1] * shape[2]
    for channel in range(shape[0]):
        share = splits.train_images[:, channel].flatten().bincount(minlength=256).double() / pixels
        mean = (share * value).sum().item()
        std = (share * (value - mean) ** 2).sum().sqrt().item()
        named = (conf.mean[channel], conf.std[channel]) if shape[0] > 1 else (conf.mean, conf.std)
        assert named == pytest.approx((mean, std), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("target", [pytest.param(0.5, marks=real("MNIST"))])
def test_lenet_learns_real_digits_in_sixty_steps(tmp_path, target):
    cfg = compose(
        f"experiment=mnist_lenet dataset.root={REAL} trainer=cpu logger=none max_steps=60 check_every=60 "
        f"dataset.validation=1000 target={target}".split()
    )
    result = experiment.run(cfg, tmp_path)
    assert (result.status, result.dataset, result.model) == ("reached", "mnist", "lenet"), result.message
    assert result.test_accuracy > target


@pytest.mark.parametrize("damaged", [pytest.param("data_batch_3", marks=real("cifar-10-batches-py"))])
def test_the_one_damaged_file_is_named(tmp_path, damaged):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for file in (REAL / folder.name).iterdir():
        (folder / file.name).symlink_to(file)
    (folder / damaged).unlink()
    (folder / damaged).write_bytes(b"short")
    with pytest.raises(DataError, match=rf"CIFAR10 in {folder} is incomplete or damaged \({damaged}\); remove that"):
        torchvision_set(str(tmp_path), False, 0, "CIFAR10")


@pytest.mark.parametrize("name", [pytest.param("MNIST", marks=real("MNIST"))])
def test_archives_are_read_from_a_relative_path_too_and_stay_as_they_are(name):
    before = sorted((REAL / name / "raw").iterdir())
    splits = read_torchvision(name, os.path.relpath(REAL), False)
    assert torch.equal(splits.test_labels, torchvision_set(str(REAL), False, 0, name).test_labels)
    assert sorted((REAL / name / "raw").iterdir()) == before


# -- files that cannot be used --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"])
def test_absent_data_says_where_it_was_sought_and_how_to_get_it(tmp_path, name):
    with pytest.raises(DataError) as error:
        torchvision_set(str(tmp_path), False, 0, name)
    assert str(error.value) == (
        f"{name} was not found in {tmp_path}; set dataset.root=PATH to where it is, or dataset.download=true"
    )
    assert not list(tmp_path.iterdir())


def test_a_damaged_archive_is_named(tmp_path):
    raw = archives(tmp_path)
    with pytest.raises(DataError, match=rf"{raw}/train-images-idx3-ubyte.gz is damaged \(its checksum is not \w+\)"):
        torchvision_set(str(tmp_path), False, 0, "MNIST")


def test_a_damaged_unpacked_file_is_an_error_with_the_folder(tmp_path):
    raw = archives(tmp_path)
    for path in list(raw.iterdir()):
        path.with_suffix("").write_bytes(b"\0\0\x08\x03short")
    with pytest.raises(DataError, match=rf"MNIST in {tmp_path}/MNIST is incomplete or damaged \(.+\); remove that"):
        torchvision_set(str(tmp_path), False, 0, "MNIST")


def test_a_download_that_fails_says_what_else_to_do(tmp_path, monkeypatch):
    def no_network(self):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", no_network)
    source = partial(torchvision_set, name="CIFAR10")
    data = TensorDataModule(source, 10, (3, 32, 32), batch_size=8, root=str(tmp_path), download=True, validation=100)
    message = rf"CIFAR10 could not be downloaded to {tmp_path} \(.*no route to host.*\); fetch it yourself"
    with pytest.raises(DataError, match=message):
        tiny_trainer().fit(numbered.module(), data)


# -- settings that do not fit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 49}, "a batch of 49 samples is larger than the training set of 48; lower batch_size"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"batch_size": 8.0}, "batch_size must be an integer of at least 1, got 8.0"),
        ({"pad": -1}, "dataset.pad must be an integer of at least 0, got -1"),
        ({"validation": 60}, "a hold-out of 60 samples leaves nothing of a class to train on"),
        ({"validation": 0}, "dataset.validation must be at least 1 to check on held-out data, got 0"),
        ({"check_on": "train"}, "dataset.check_on must be 'validation' or 'test', got 'train'"),
        ({"device": "tpu"}, "dataset.device must be 'auto' or 'cpu', got 'tpu'"),
        ({"num_classes": 6}, "dataset.num_classes must be above the largest label, 6, got 6"),
        ({"input_shape": (1, 4, 1)}, "dataset.input_shape must be that of the images, (1, 2, 2), got (1, 4, 1)"),
    ],
)
def test_a_setting_that_does_not_fit_the_data(changes, message):
    with pytest.raises(DataError) as error:
        numbered.data(**changes).setup()
    assert message in str(error.value)


def test_more_than_the_memory_says_how_much_and_what_to_do(monkeypatch):
    with pytest.raises(DataError) as error:
        synthetic("", False, 0, shape=(3, 1000, 1000), classes=2, train=10**7, test=1, noise=1.0)
    assert "the data needs 139698.4 GiB on cpu, of which" in str(error.value)
    assert str(error.value).endswith("are free; lower dataset.source.train")

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**34))
    ensure_memory(2**30, torch.device("cuda"), "…")  # all that is free
    with pytest.raises(DataError, match=r"the data needs 1.5 GiB on cuda, of which 1.0 GiB are free; turn here"):
        ensure_memory(3 * 2**29, torch.device("cuda"), "turn here")
