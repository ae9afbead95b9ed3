"""Trees of image files: found, split, shared out, and the same batches from any position."""

import pytest
import torch
from PIL import Image

from lrbench_pl.runs import run as experiment
from lrbench_pl.runs.config import compose
from lrbench_pl.workloads.data import DataError, ImageFolderDataModule
from lrbench_pl.workloads.data.folder import DrawnImages, StreamSampler

CLASSES = ("ant", "bee")
PER_CLASS = {"train": 9, "val": 3}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """18 + 6 noisy images, those of the second class brighter."""
    root = tmp_path_factory.mktemp("tree")
    generator = torch.Generator().manual_seed(0)
    for part, n in PER_CLASS.items():
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(n):
                pixels = torch.randint(0, 100, (40, 50, 3), generator=generator) + 120 * label
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{index}.png")
    return root


def data(tree, **changes):
    defaults = {"num_classes": 2, "input_shape": (3, 32, 32), "batch_size": 4, "validation": 4, "workers": 0}
    module = ImageFolderDataModule(root=str(tree), **{**defaults, **changes})
    module.setup()
    return module


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_batches_are_a_function_of_the_position(tree):
    loader = data(tree).train_dataloader()
    state = torch.get_rng_state()
    batches = [next(loader) for _ in range(6)]
    assert batches[0][0].shape == (4, 3, 32, 32)
    assert not same(batches[0], batches[1])
    for position in (4, 0):
        loader.position = position
        assert same(next(loader), batches[position])
        assert same(next(loader), batches[position + 1])
    fresh = data(tree).train_dataloader()
    fresh.load_state_dict({"position": 5})
    assert same(next(fresh), batches[5])
    assert fresh.state_dict() == {"position": 6}
    assert torch.equal(torch.get_rng_state(), state)


def test_an_image_is_augmented_anew_each_time(tree):
    images = DrawnImages(data(tree)._train, seed=0)
    assert torch.equal(images[3, 1][0], images[3, 1][0])
    assert not torch.equal(images[3, 1][0], images[4, 1][0])


@pytest.mark.slow
def test_workers_change_nothing(tree):
    alone, helped = (data(tree, workers=workers).train_dataloader() for workers in (0, 2))
    assert all(same(next(alone), next(helped)) for _ in range(5))


def test_an_epoch_shows_each_image_once():
    batches = iter(StreamSampler(14, 4, seed=0))
    shown = [sample for _ in range(7) for _, sample in next(batches)]
    assert sorted(shown[:14]) == sorted(shown[14:]) == list(range(14))
    assert shown[:14] != shown[14:]


def test_ranks_share_each_global_batch():
    whole = next(iter(StreamSampler(14, 6, seed=0)))
    shares = [next(iter(StreamSampler(14, 2, seed=0, rank=rank, world_size=3))) for rank in range(3)]
    assert [key for share in shares for key in share] == whole


def test_checks_see_what_training_does_not(tree):
    module = data(tree)
    labels = torch.cat([labels for _, labels in module.val_dataloader()])
    assert labels.bincount().tolist() == [2, 2]
    held_out, kept = set(module._held_out.indices), set(module._train.indices)
    assert held_out | kept == set(range(18))
    assert not held_out & kept
    assert sum(len(labels) for _, labels in module.test_dataloader()) == 6


def test_the_papers_protocol_trains_on_everything(tree):
    module = data(tree, check_on="test")
    assert len(module._train) == 18
    assert same(next(iter(module.val_dataloader())), next(iter(module.test_dataloader())))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 3}, "/train holds 2 classes, but dataset.num_classes is 3"),
        ({"batch_size": 15}, "a batch of 15 samples is larger than the training set of 14; lower batch_size"),
        ({"validation": 18}, "a hold-out of 18 samples leaves nothing of a class to train on"),
        ({"validation": 0}, "dataset.validation must be at least 1 to check on held-out data, got 0"),
        ({"root": "/nowhere"}, "images were not found in /nowhere/train; expected train/CLASS/*.jpg there"),
    ],
)
def test_a_setting_that_does_not_fit(tree, changes, message):
    with pytest.raises(DataError) as error:
        data(changes.pop("root", tree), **changes)
    assert message in str(error.value)


@pytest.mark.slow
def test_the_experiment_runs_on_a_small_tree(tree, tmp_path):
    cfg = compose(
        f"experiment=imagenet_resnet18 dataset.root={tree} dataset.num_classes=2 dataset.input_shape=[3,32,32] "
        "dataset.workers=0 dataset.validation=4 batch_size=4 max_steps=4 check_every=2 trainer=cpu logger=none "
        "target=0.01 stop_at_target=false".split()
    )
    result = experiment.run(cfg, tmp_path)
    assert (result.status, result.steps_run) == ("reached", 4), result.message
    assert result.test_loss > 0
    assert result.train_loss > 0
    assert result.test_top5 is None
