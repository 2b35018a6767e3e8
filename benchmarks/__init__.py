"""Time and memory: every stage compared with its published formulation (bench.py); networks on a GPU (gpu.py)."""
