"""Timings: every stage beside the published formulation of its arithmetic, in one process, alternately."""
