"""The arithmetic (CAM, losses, affinity, random walk, CRF, metrics) and the plumbing the scripts share."""
