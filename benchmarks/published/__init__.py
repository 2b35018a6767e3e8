"""The published formulations, written anew from SPEC: what the benchmarks measure against and the tests compare with."""
