"""Step 3: the parts of DeepLab's training and test that the scripts of segmentation/experiment/ call."""
