"""What the commands of `python -m keras_resnet` do; their flags are in the `__main__` of each package."""
