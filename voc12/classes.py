"""The classes of PASCAL VOC 2012."""
from data.classes import ClassSet

VOC = ClassSet('PASCAL VOC 2012', (
    'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
    'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor'))
