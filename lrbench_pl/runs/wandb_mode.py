"""Whether W&B is to write files only; for the runs and for their ranking."""

from __future__ import annotations

import os


def is_offline() -> bool:
    """Whether ``WANDB_MODE`` is ``offline``, or is not set and there is no key.

    To be said to W&B itself: a session that began earlier in this process no longer reads the environment.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE")
    return not wandb.api.api_key if mode is None else mode == "offline"
