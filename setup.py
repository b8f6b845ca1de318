"""Packages of the wheel. All else is in `pyproject.toml`, which cannot map one folder and find the others."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["laser_hf", "laser_hf.*"]), "laser_hf.model_cards"],
    package_dir={"laser_hf.model_cards": "model_cards"},
)
