"""Object detection data: boxes and labels of images, read from folders and TFDS, or composited."""
