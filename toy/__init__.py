"""The toy VOC: a drawn data set in the layout of PASCAL VOC, and the small backbone trained on such drawings."""
