"""Timings: every stage beside the published formulation of its arithmetic (bench.py), and on a GPU (gpu.py)."""
