"""The parts of benchmarks/gpu.py. Each is a generator of rows and imports only the code that it measures."""
