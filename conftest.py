"""What pytest leaves alone where a library is missing."""

import importlib.util

# Triton comes with torch for Linux and CUDA; without it these modules cannot be imported, and nothing imports them.
_NEED_TRITON = [f"lrbench_pl/sweeps/fused/{name}.py" for name in ("kernels", "layers", "operations")]
collect_ignore = _NEED_TRITON if importlib.util.find_spec("triton") is None else []
