"""``python -m lrbench_pl`` is ``lrbench``."""

from lrbench_pl.cli import main

if __name__ == "__main__":
    main()
