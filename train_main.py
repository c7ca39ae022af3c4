"""Trains a network of the zoo: a recipe is the science, flags are the options.

python train_main.py --recipe=digits --workdir=runs/digits
"""

import os
import sys

# Before TensorFlow is loaded: its start-up notes would bury ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags

from keras_resnet.quiet import quiet

with quiet():
    from keras_resnet import InputError, cli
    from keras_resnet.classification import get_recipe, train
    from keras_resnet.training import Preempted, RunOptions, TrainingFailed

flags.DEFINE_string("recipe", "digits", "What to learn; `python -m keras_resnet.training` lists the recipes.")
flags.DEFINE_string("model", None, "A network of `python -m keras_resnet`, instead of the recipe's.")
flags.DEFINE_string("dataset", None, "digits, a TFDS name or folder:PATH, instead of the recipe's.")
flags.DEFINE_string("data_dir", None, "Where TFDS keeps its datasets.")
flags.DEFINE_string("workdir", None, "The run's folder. Default: runs/RECIPE-MODEL.")
flags.DEFINE_float("epochs", None, "Length of the run, instead of the recipe's.")
flags.DEFINE_integer("batch_size", None, "Global batch size, instead of the recipe's.")
flags.DEFINE_float("learning_rate", None, "Peak learning rate, instead of the recipe's.")
flags.DEFINE_multi_string("set", [], "key=value: another field of the recipe, or model.KEY=value.")
flags.DEFINE_string("weights", None, "A weight entry such as imagenet, or a file, to start from.")
flags.DEFINE_string("freeze", None, "C1 ... C5: the stages up to this feature map are not trained.")
flags.DEFINE_string("strategy", "auto", "auto, one_device, mirrored or multi_worker.")
flags.DEFINE_string("precision", "float32", "float32, bfloat16 or float16.")
flags.DEFINE_integer("seed", 0, "Of the initial weights, the data's order and the augmentation.")
flags.DEFINE_integer("checkpoint_every", 0, "Steps between checkpoints, besides one after each epoch.")
flags.DEFINE_integer("keep", 2, "Checkpoints kept.")
flags.DEFINE_integer("steps_per_call", 1, "Steps in one call of the compiled graph.")
flags.DEFINE_integer("accumulate", 1, "Parts in which a replica's batch is worked off, to save memory.")
flags.DEFINE_bool("jit", False, "Compile the steps with XLA.")
flags.DEFINE_bool("remat", False, "Compute activations twice instead of keeping them, to save memory.")
flags.DEFINE_bool("sync_batch_norm", False, "Take batch statistics over all replicas.")
flags.DEFINE_integer("max_bad_images", 100, "Images that cannot be decoded before the run stops.")
flags.DEFINE_float("worker_timeout", 300, "Seconds to wait for other workers.")
flags.DEFINE_list("export", [], "Formats to export to and verify afterwards: saved_model, tflite, onnx.")
FLAGS = flags.FLAGS


def _recipe():
    recipe = get_recipe(FLAGS.recipe, FLAGS.model)
    if FLAGS.epochs is not None:
        recipe = recipe.replace(epochs=FLAGS.epochs, steps=None)
    names = ("dataset", "batch_size", "learning_rate", "weights", "freeze")
    recipe = recipe.replace(**{name: FLAGS[name].value for name in names if FLAGS[name].value is not None})
    return recipe.set(FLAGS.set)


def main() -> int:
    """Trains, and exports if asked to; the exit status."""
    recipe = _recipe()
    workdir = FLAGS.workdir or os.path.join("runs", f"{FLAGS.recipe}-{recipe.model}")
    names = ("strategy", "precision", "seed", "data_dir", "checkpoint_every", "keep", "steps_per_call")
    names += ("accumulate", "jit", "remat", "sync_batch_norm", "max_bad_images", "worker_timeout")
    options = RunOptions(**{name: FLAGS[name].value for name in names})
    if FLAGS.export:
        from export import check_formats

        check_formats(FLAGS.export)
    try:
        train(recipe, workdir, options)
    except Preempted as stop:
        print(stop, file=sys.stderr)
        return 143
    except TrainingFailed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    except OSError as error:
        raise InputError(f"cannot write to {workdir}: {error.strerror or error}") from None
    if FLAGS.export:
        from export import export_workdir

        return 0 if export_workdir(workdir, FLAGS.export, data_dir=FLAGS.data_dir) else 1
    return 0


if __name__ == "__main__":
    cli.run(main)
