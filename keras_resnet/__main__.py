"""`python -m keras_resnet`, also installed as `keras-resnet`: all commands. Without any, prints the zoo."""

import dataclasses
import json as json_format

from keras_resnet import cli
from keras_resnet.models.config import MODELS
from keras_resnet.quiet import quiet


def _print_models(json: bool) -> None:
    """Prints the networks as a table, or their configurations as JSON, which needs no Keras."""
    if json:
        configs = {name: dataclasses.asdict(config) for name, config in MODELS.items()}
        print(json_format.dumps(configs, indent=2))
        return
    with quiet():
        main = cli.load("keras_resnet.commands.models:main")
    main()


_MODELS = cli.Command(
    _print_models,
    "Prints the networks as a table.",
    (cli.Flag("json", "Print their configurations as JSON.", bool, False),),
)

COMMAND = cli.Group(
    'Trains, evaluates and exports the networks of "Deep Residual Learning for Image Recognition".',
    {
        "models": _MODELS,
        "recipes": "keras_resnet.commands.recipes",
        "train": "keras_resnet.commands.recipes:TRAIN",
        "evaluate": "keras_resnet.classification.__main__",
        "weights": "keras_resnet.weights.__main__",
        "data": "keras_resnet.data.__main__",
        "export": "keras_resnet.export.__main__",
        "zoo": "keras_resnet.commands.zoo",
        "detect": "keras_resnet.detection.__main__:DETECT",
        "detection": "keras_resnet.detection.__main__",
        "experiments": "experiments.__main__",
        "launch": "keras_resnet.training.launch_local",
    },
    default=_MODELS,
)


def main() -> None:
    """Runs the command that the arguments name."""
    cli.run(COMMAND)


if __name__ == "__main__":
    main()
