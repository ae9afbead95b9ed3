"""The configuration groups, installed as ``lrbench_pl.conf``; in a project of yours ``hydra.searchpath: [pkg://lrbench_pl.conf]``.

Hydra imports this package only when it is on the search path. Importing it registers the resolvers ``${steps:}``,
``${rate:}``, ``${decay:}``, ``${behind:}`` and ``${per_budget:}``, so that programs that do not use them have none.
"""

from lrbench_pl.runs.config import register_resolvers

register_resolvers()
