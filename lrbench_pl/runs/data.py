"""Build the data module of a configuration. Imports no torch itself."""

from __future__ import annotations

import inspect
from typing import Any

from omegaconf import DictConfig, OmegaConf

DESCRIBES_DATA = ("num_classes", "input_shape")


def build_data(cfg: DictConfig) -> Any:
    """Build the data module of a configuration.

    ``dataset.num_classes`` and ``dataset.input_shape`` describe the data to other parts, such as the model. They are
    passed to the data module only if its constructor has these arguments.

    Args:
        cfg: The group ``dataset`` of a configuration.

    Example:
        >>> build_data(OmegaConf.create({"_target_": "fractions.Fraction", "numerator": 2, "num_classes": 10}))
        Fraction(2, 1)
    """
    from hydra.utils import get_object, instantiate

    try:
        takes = inspect.signature(get_object(str(cfg.get("_target_")))).parameters
    except Exception:  # a failing import, or no signature: instantiate has the message
        return instantiate(cfg)
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes.values()):
        return instantiate(cfg)
    left_out = [name for name in DESCRIBES_DATA if name in cfg and name not in takes]
    if not left_out:
        return instantiate(cfg)
    resolved: Any = OmegaConf.to_container(cfg, resolve=True)  # while the nodes that it refers to are there
    return instantiate({name: value for name, value in resolved.items() if name not in left_out})
