"""The parts of benchmarks/gpu.py: a generator of rows each, which needs no more of the repository than it measures."""
