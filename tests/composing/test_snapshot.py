"""Random state as plain data."""

import io
import random

import numpy as np
import torch

from lrbench_pl.composing.snapshot import _random_state, _set_random_state


def test_the_random_state_can_be_restored_from_a_file():
    def draws():
        return random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()

    np.random.standard_normal()  # it keeps a second number for the next call
    file = io.BytesIO()
    torch.save(_random_state(), file)
    first = draws()
    assert draws() != first
    file.seek(0)
    _set_random_state(torch.load(file, weights_only=True))
    assert draws() == first
