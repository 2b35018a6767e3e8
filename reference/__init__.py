"""The published formulation in plain loops, written anew from its description: the oracle of tests and benchmarks.

Each module names the fast functions that it is the plain twin of. None of them imports these.
"""
