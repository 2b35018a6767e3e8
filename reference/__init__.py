"""The published formulations in plain loops, written anew: the oracle of tests and benchmarks."""
