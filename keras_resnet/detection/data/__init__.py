"""Object detection datasets: read from folders and TFDS, or composited; augmentation and batches."""
