"""The classes of PASCAL VOC 2012."""
from data.description import read_dataset

VOC = read_dataset('voc12').classes
