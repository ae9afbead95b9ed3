"""The packages of the distribution; pyproject.toml, which has all else, cannot add one to those that are found."""

from setuptools import find_namespace_packages, find_packages, setup

setup(
    packages=[
        *find_packages(include=["lrbench_pl", "lrbench_pl.*"]),
        *find_namespace_packages(include=["hydra_plugins", "hydra_plugins.*"]),
        "lrbench_pl.conf",
    ],
    package_dir={"lrbench_pl.conf": "conf"},
)
