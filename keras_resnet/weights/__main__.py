"""`python -m keras_resnet weights`: lists, converts and compares weights."""

from keras_resnet import cli
from keras_resnet.tables import markdown_table
from keras_resnet.weights.registry import entries_of

_SOURCE = cli.Flag(
    "source",
    "A name of published weights, a file (.safetensors, .pth, .h5), or a folder with timm's config.json.",
    required=True,
)
_MODEL = cli.Flag("model", "A network, such as resnet50_v1_5.", required=True)


def _print_list(model: str | None = None) -> None:
    """Prints the table of published weights, for one network or all."""
    rows = []
    for entry in entries_of(model):
        view, name = entry.preprocessing, entry.name + (" (imagenet)" if entry.default else "")
        accuracies, crop = (f"{entry.top1:.2f}", f"{entry.top5:.2f}"), f"{view.resize}, {view.size}"
        rows.append((entry.model, name, *accuracies, crop, view.interpolation, entry.license))
    header = ("network", "weights", "top-1", "top-5", "resize, crop", "interpolation", "license")
    print(markdown_table(header, rows))


COMMAND = cli.Group(
    "Lists published weights, converts those of other libraries, and compares them.",
    {
        "list": cli.Command(
            _print_list,
            "Prints the table of published weights.",
            arguments=(cli.Flag("model", "Only those of this network."),),
        ),
        "convert": cli.Command(
            "keras_resnet.commands.weights:convert",
            "Converts weights from the format of another library, or to it.",
            (
                cli.Flag("model", "The network of a source that does not name it, such as resnet50_v1_5."),
                cli.Flag(
                    "output",
                    "What to write: a .weights.h5 file; for torchvision and timm, .safetensors or .pth; "
                    "for keras_applications, .h5; for huggingface, a folder.",
                    required=True,
                ),
                cli.Flag("to", "torchvision, timm, keras_applications or huggingface."),
                cli.Flag(
                    "license", "Of the weights, for the model card of --to=huggingface, such as apache-2.0."
                ),
            ),
            (_SOURCE,),
        ),
        "compare": cli.Command(
            "keras_resnet.commands.weights:compare",
            "Runs weights in their own framework and in Keras; the exit status is 1 if the outputs differ.",
            (_MODEL,),
            (_SOURCE,),
        ),
    },
)

if __name__ == "__main__":
    cli.run(COMMAND)
