"""Choose between online and offline mode of W&B, for runs and for rankings."""

from __future__ import annotations

import os


def is_offline() -> bool:
    """Return whether W&B runs offline: by ``WANDB_MODE``, or for lack of a key.

    Pass the answer to W&B: a session that started earlier in this process no longer reads the environment.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE")
    return not wandb.api.api_key if mode is None else mode == "offline"
