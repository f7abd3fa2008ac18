"""Modules of benchmarks/flare.py that FLARE's processes import."""
