"""From pixels to a network's input: one description, and its TensorFlow operations."""
