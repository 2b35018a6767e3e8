"""The published formulations, written anew from SPEC: what benchmarks measure against and tests compare with."""
