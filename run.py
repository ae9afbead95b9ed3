"""``lrbench run`` in a checkout; python run.py --help."""

from lrbench_pl.cli_run import main

if __name__ == "__main__":
    main()
