"""What pytest leaves alone where a library is missing."""

import importlib.util

# Triton comes with torch for Linux and CUDA; without it these modules cannot be imported, and nothing imports them.
_NEED_TRITON = ["lrbench_pl/sweeps/fused/kernels.py", "lrbench_pl/sweeps/fused/layers.py"]
collect_ignore = _NEED_TRITON if importlib.util.find_spec("triton") is None else []
