"""The networks, and the reading of pretrained weights. Modules here know no paths and no scripts."""
