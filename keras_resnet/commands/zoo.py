"""The flags of `python -m keras_resnet zoo`."""

from keras_resnet import cli

SERVE = cli.Command(
    "keras_resnet.export.page.server:serve",
    "Serves exported classifiers as a page, in which they classify your photos.\n\n"
    "ONNX Runtime Web computes in the browser: no image leaves it. The first call fetches the runtime with "
    "npm;\nlater calls need no network. The page is only reachable from this machine.",
    (
        cli.Flag("port", "Port on 127.0.0.1; 0 for any free one.", int, 8000),
        cli.Flag(
            "runtime",
            "The npm package onnxruntime-web as a .tgz file or an unpacked folder, for machines without npm "
            "or a network; it is needed once.",
        ),
    ),
    (
        cli.Flag(
            "folder",
            "The folder of a run, of an export, or of several exports such as the whole zoo's. It needs ONNX "
            "files.",
            default="exported",
        ),
    ),
    extra="export",
)

COMMAND = cli.Group("Tries exported networks in the browser.", {"serve": SERVE})
