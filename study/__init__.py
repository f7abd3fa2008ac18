"""What the pages of ``docs/results`` are made with: records of runs, their pages, and ablations.

It serves this repository and is not in the wheel; ``samfed_monai`` imports nothing of it. ``python -m study --help``,
from the repository's top, and ``study/README.md`` say how it is used.
"""
