"""`python -m experiments.exports`: trained networks as SavedModel, TFLite and ONNX."""

from experiments import command

if __name__ == "__main__":
    command.run("exports")
