"""PASCAL VOC 2012: its class names, its lists and image-level labels from a devkit."""
