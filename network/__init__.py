"""The networks, and the reading of pretrained weights. Modules here know no paths and no scripts."""

PUBLISHED_CHANNELS = 21  # of the published checkpoints (VOC and background): what Net() without arguments builds
