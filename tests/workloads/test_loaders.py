"""Batches: which samples, how augmented, and the same again from any position."""

import numpy as np
import pytest
import torch

from lrbench_pl.workloads.data import Augment, EvalLoader, Normalise, TrainLoader
from lrbench_pl.workloads.data.loaders import SampleStream, mixed_seed
from tests.workloads.numbered import BATCH, HELD_OUT, TRAIN, data, numbers

IMAGES = torch.randint(0, 256, (50, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(50)
PLAIN = Normalise(torch.tensor(0.0), torch.tensor(1.0))


def loader(**changes):
    defaults = {"batch_size": 12, "seed": 3, "normalise": PLAIN, "augment": Augment(pad=2, flip=True)}
    return TrainLoader(IMAGES, LABELS, torch.arange(50), **{**defaults, **changes})


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def augmented_one_by_one(images, draws, pad):
    """Each image padded, cropped and mirrored in numpy."""
    shown = []
    for image, (row, column, mirrored) in zip(images.numpy(), draws.tolist(), strict=True):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        crop = padded[:, row : row + image.shape[1], column : column + image.shape[2]]
        shown.append(crop[:, :, ::-1] if mirrored else crop)
    return np.stack(shown)


@pytest.mark.parametrize(("pad", "flip"), [(2, True), (3, False), (0, True)])
def test_augmentation_is_that_of_each_image_alone(pad, flip):
    augment = Augment(pad, flip)
    draws = augment.draw(50, torch.Generator().manual_seed(1))
    assert np.array_equal(augment(IMAGES, draws).numpy(), augmented_one_by_one(IMAGES, draws, pad))


def test_draws_cover_every_offset_and_both_sides():
    draws = Augment(pad=1, flip=True).draw(400, torch.Generator().manual_seed(0))
    assert [sorted(set(column.tolist())) for column in draws.T] == [[0, 1, 2], [0, 1, 2], [0, 1]]
    assert not Augment(pad=1, flip=False).draw(400, torch.Generator().manual_seed(0))[:, 2].any()


def test_a_batch_is_its_samples_augmented_and_normalised():
    mean, std = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([0.5, 0.6, 0.7])[:, None, None]
    augment = Augment(pad=2, flip=True)
    images, labels = next(loader(normalise=Normalise(mean, std)))
    draws = augment.draw(12, torch.Generator().manual_seed(mixed_seed(3, 1, 0)))
    expected = (augmented_one_by_one(IMAGES[labels], draws, 2) / 255 - mean.numpy()) / std.numpy()
    assert images.dtype == torch.float32
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_batches_are_full_and_each_epoch_shows_each_sample_once():
    stream = loader()
    batches = [next(stream)[1] for _ in range(25)]  # 300 samples: six epochs of 50
    assert {len(batch) for batch in batches} == {12}
    epochs = torch.cat(batches).view(6, 50)
    assert all(sorted(epoch.tolist()) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 6


def test_a_batch_larger_than_an_epoch_crosses_several():
    cut = SampleStream(torch.arange(4), seed=0).cut(3, 14)
    whole = torch.cat([SampleStream(torch.arange(4), seed=0).cut(k, k + 1) for k in range(3, 14)])
    assert torch.equal(cut, whole)


def test_a_position_has_one_batch():
    stream = loader()
    batches = [next(stream) for _ in range(9)]
    for position in (7, 0, 4):
        stream.position = position
        assert equal(next(stream), batches[position])
    fresh = loader()
    fresh.load_state_dict({"position": 8})
    assert equal(next(fresh), batches[8])
    assert fresh.state_dict() == {"position": 9}


def test_another_seed_is_another_order_and_another_augmentation():
    first, second = next(loader(seed=3)), next(loader(seed=4))
    assert not torch.equal(first[1], second[1])
    draws = [Augment(2, True).draw(12, torch.Generator().manual_seed(mixed_seed(seed, 1, 0))) for seed in (3, 4)]
    assert not torch.equal(*draws)


def test_a_sample_is_augmented_anew_each_time():
    one = TrainLoader(
        IMAGES, LABELS, torch.tensor([7]), batch_size=1, seed=0, normalise=PLAIN, augment=Augment(2, True)
    )
    assert len({next(one)[0].numpy().tobytes() for _ in range(40)}) > 20  # of 50 ways


def test_ranks_share_the_batch_of_one_process_augmentation_included():
    whole = next(loader(batch_size=12))
    shares = [next(loader(batch_size=4, rank=rank, world_size=3)) for rank in range(3)]
    assert equal(whole, [torch.cat(parts) for parts in zip(*shares, strict=True)])


def test_seeds_of_neighbours_differ():
    seeds = {mixed_seed(seed, stream, number) for seed in range(20) for stream in range(2) for number in range(50)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_evaluation_is_once_through_in_order():
    batches = list(EvalLoader(IMAGES, LABELS, torch.arange(50), batch_size=20, normalise=PLAIN))
    assert [len(labels) for _, labels in batches] == [20, 20, 10]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(labels, LABELS)
    assert torch.equal(images, PLAIN(IMAGES))


def test_a_module_holds_out_what_it_checks_on():
    module = data()
    stream = module.train_dataloader()
    trained = set(numbers(torch.cat([next(stream)[0] for _ in range(6)])))
    checked = [number for images, _ in module.val_dataloader() for number in numbers(images)]
    fixed = [number for images, _ in module.train_eval_dataloader() for number in numbers(images)]
    assert len(checked) == HELD_OUT
    assert trained | set(checked) == set(range(TRAIN))
    assert trained == set(fixed)


def test_the_papers_protocol_trains_on_everything_and_checks_on_the_test_set():
    module = data(check_on="test", batch_size=TRAIN)
    images, _ = next(module.train_dataloader())
    assert sorted(numbers(images)) == list(range(TRAIN))
    pairs = zip(module.val_dataloader(), module.test_dataloader(), strict=True)
    assert all(equal(checked, tested) for checked, tested in pairs)


def test_the_mean_image_is_that_of_the_training_samples():
    module = data(mean="image", std=1 / 255)
    stream = module.train_dataloader()
    epoch = torch.cat([next(stream)[0] for _ in range((TRAIN - HELD_OUT) // BATCH)])
    assert len(epoch) == TRAIN - HELD_OUT
    assert epoch.mean(0).abs().max() < 1e-3  # of 255
    assert epoch.abs().max() > 10
