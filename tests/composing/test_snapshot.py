"""Random state as plain data."""

import io
import random

import numpy as np
import torch

from lrbench_pl.composing.snapshot import _random_state, _set_random_state


def test_random_numbers_go_back_from_a_file_too():
    def draws():
        return random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()

    np.random.standard_normal()  # which keeps a second one for the next call
    file = io.BytesIO()
    torch.save(_random_state(), file)
    first = draws()
    assert draws() != first
    file.seek(0)
    _set_random_state(torch.load(file, weights_only=True))
    assert draws() == first
