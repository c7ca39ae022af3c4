"""Preprocessing of images, and its TensorFlow operations."""
