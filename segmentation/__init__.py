"""Step 3: what trains and tests DeepLab on pseudo masks, below the scripts of segmentation/experiment/."""
