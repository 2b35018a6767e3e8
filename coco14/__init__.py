"""COCO 2014: its lists, image-level labels and masks from the instances JSON."""
