"""Any data set: its classes, lists, images, labels and masks, and the files between the steps, reader beside writer."""
