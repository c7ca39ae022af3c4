"""`python -m keras_resnet export`: exports weights to artifacts that are verified against the Keras model."""

from keras_resnet import cli

COMMAND = cli.Command(
    "keras_resnet.commands.export:main",
    "Exports a training run, weights of a classifier or detector, or a Keras model to verified artifacts.\n\n"
    "Exit status: 0 if every artifact equals the Keras model, 1 if one differs (with --strict also if the "
    "top-1 of one falls too far), 2 for invalid input.",
    (
        cli.Flag("workdir", "Folder of a training run, with its weights and recipe."),
        cli.Flag(
            "model", "A network or detector, together with --weights. `python -m export` also takes all."
        ),
        cli.Flag(
            "weights",
            "Weights of --model: a weight file of this package or another zoo (.safetensors, .pth, .h5), a "
            "name of published weights such as imagenet, or none for random ones. For --model=all none, or a "
            "folder of MODEL.weights.h5.",
        ),
        cli.Flag(
            "keras",
            "A .keras file with a classifier of any origin, instead of --model and --weights. It is loaded "
            "in Keras' safe mode, which refuses Lambda layers.",
        ),
        cli.Flag(
            "mean",
            "With --keras: the mean that training subtracted from pixels 0-255; one number, or one per "
            "channel.",
            tuple,
            ["0"],
        ),
        cli.Flag(
            "std",
            "With --keras: the standard deviation that training divided by; one number, or one per channel.",
            tuple,
            ["1"],
        ),
        cli.Flag(
            "resize",
            "With --keras: length in pixels of the shorter side before the center crop. Default: the whole "
            "image is resized.",
            int,
        ),
        cli.Flag("labels", "With --keras: a text file with one class name per line."),
        cli.Flag("classes", "Number of classes, if not the network's own.", int),
        cli.Flag("formats", "What to write, separated by commas.", default="saved_model,tflite,onnx"),
        cli.Flag(
            "precision",
            "Numeric types inside, separated by commas: float32, float16 (TFLite, ONNX), bfloat16 "
            "(SavedModel), dynamic (TFLite), int8 (TFLite, ONNX).",
            default="float32",
        ),
        cli.Flag("io_dtype", "Type of the pixels of TFLite and ONNX: float32 or uint8.", default="float32"),
        cli.Flag("opset", "Opset of ONNX files.", int, 17),
        cli.Flag("layout", "Layout of the images that ONNX files take: nhwc or nchw.", default="nhwc"),
        cli.Flag("dynamic_size", "ONNX files take images of any size.", bool, False),
        cli.Flag(
            "batch_size",
            "Number of images that TFLite files take per call, as LiteRT.js and the accelerators of phones "
            "require; 1 is usual. Default: any number.",
            int,
        ),
        cli.Flag("calibration_images", "For int8: images of the dataset's training split.", int, 256),
        cli.Flag(
            "max_top1_drop",
            "Percentage points by which the top-1 of a less precise file may fall; a file that loses more is "
            "reported as worse.",
            float,
            1.0,
        ),
        cli.Flag("strict", "Exit status 1 if a file is worse.", bool, False),
        cli.Flag("output_dir", "Where to write. Default: WORKDIR/export, exported/MODEL, or exported."),
        cli.Flag("dataset", "Verify on this dataset's evaluation split."),
        cli.Flag("images", "Detectors only: number of images to verify on. Default: the first 200.", int),
        cli.Flag(
            "image_size",
            "Detectors only: HEIGHT,WIDTH of the images that TFLite files take. Default: the most frequent "
            "size of the images to verify on.",
            tuple,
            [],
        ),
        cli.Flag("data_dir", "Where TFDS keeps its datasets."),
    ),
    extra="export",
)

if __name__ == "__main__":
    cli.run(COMMAND)
