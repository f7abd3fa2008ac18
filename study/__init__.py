"""Writes the pages of ``docs/results`` from records of runs.

This package is only for this repository: it is not in the wheel, and ``samfed_monai`` imports nothing from it. For its
use, see ``study/README.md``, or run ``python -m study --help`` in the top folder of the repository.
"""
