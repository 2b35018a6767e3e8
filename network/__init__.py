"""The networks, and the reading of pretrained weights. Modules here know no data set and no scripts."""
