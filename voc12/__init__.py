"""The data side: class descriptions, VOC datasets, lists and labels from a devkit, the toy VOC."""
