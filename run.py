"""``lrbench run`` in a checkout; python run.py --help."""

import sys

try:
    import importlib.metadata

    importlib.metadata.version("lrbench_pl")  # what a checkout alone does not have
    from lrbench_pl.cli.run import main
except ImportError as error:
    sys.exit(
        f"error: lrbench_pl is not installed for this Python ({sys.executable}: {error}); "
        "run `make install`, then `.venv/bin/python run.py …`, or `python -m pip install -e .` here"
    )

if __name__ == "__main__":
    main()
