"""What the learning rate is: policies as frozen values, pure in the iteration, of the standard library alone."""

from lrbench_pl.policies._basic import (
    Constant,
    Exponential,
    InverseTime,
    MultiStep,
    Polynomial,
    Sigmoid,
    SqrtDecay,
    Step,
)
from lrbench_pl.policies._compose import (
    AdaptivePolicy,
    Policy,
    Sequential,
    policy_id,
    segments,
    table,
    warmup,
)
from lrbench_pl.policies._config import from_config, to_config
from lrbench_pl.policies._cyclic import Cyclic
from lrbench_pl.policies._lrbench import LRBENCH_POLICIES, from_lrbench
from lrbench_pl.policies._plateau import PlateauPolicy
from lrbench_pl.policies._stretch import cut, stretched

__all__ = [
    "LRBENCH_POLICIES",
    "AdaptivePolicy",
    "Constant",
    "Cyclic",
    "Exponential",
    "InverseTime",
    "MultiStep",
    "PlateauPolicy",
    "Policy",
    "Polynomial",
    "Sequential",
    "Sigmoid",
    "SqrtDecay",
    "Step",
    "cut",
    "from_config",
    "from_lrbench",
    "policy_id",
    "segments",
    "stretched",
    "table",
    "to_config",
    "warmup",
]
