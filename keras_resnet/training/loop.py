"""The training run: steps, evaluation after each epoch, checkpoints, reports, and going on."""

import contextlib
import dataclasses
import math
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import (
    BadImages,
    Dataset,
    Split,
    Transform,
    dataset_statistics,
    evaluation_batches,
    get_augmentation,
    open_dataset,
    progressive_size,
    steps_per_epoch,
    training_batches,
)
from keras_resnet.errors import CommandFailed, InputError
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.models.config import get_config
from keras_resnet.models.resnet import freeze
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import checkpoints
from keras_resnet.training.distribution import Distribution, create
from keras_resnet.training.options import PRECISIONS, RunOptions
from keras_resnet.training.progress import HISTORY, Reports, draw_curves
from keras_resnet.training.recipe import Recipe, check_run_folder, run_identity
from keras_resnet.training.schedules import Schedule
from keras_resnet.training.step import METRICS, Trainer
from keras_resnet.weights import ModelSpec, open_weights, save_weights

_NORMALIZATION = ("mean", "std")  # fields of a `Normalization`, as checkpoints keep them


class TrainingFailed(CommandFailed):
    """The run cannot go on by itself; the message is one line."""


class Preempted(CommandFailed):
    """The run was asked to stop, and has left a checkpoint to go on from."""

    status = 143  # as after SIGTERM
    prefix = ""


def train(recipe: Recipe, workdir: str | Path, options: RunOptions | None = None) -> dict:
    """Trains a recipe in a folder, from its start or from the last checkpoint that is there.

    A checkpoint has everything: the weights that the recipe starts from are not read again then.

    Args:
        recipe: what to learn.
        workdir: the run's folder; see `workdir.RunFolder`.
        options: how.

    Returns:
        The last row of history.csv.

    Raises:
        InputError: something in the arguments is wrong; nothing was written then.
        TrainingFailed: the loss or the gradient is not finite, or another worker is gone.
        Preempted: SIGTERM came; a checkpoint was written.
        OSError: the workdir cannot be written.
    """
    options = options or RunOptions()
    distribution = create(options.strategy, options.worker_timeout)
    run = _Run(recipe, RunFolder(workdir), options, distribution)
    return run.run()


class _Run:
    def __init__(self, recipe, workdir, options, distribution):
        self.recipe: Recipe = recipe
        self.workdir: RunFolder = workdir
        self.options: RunOptions = options
        self.distribution: Distribution = distribution
        check_run_folder(self.workdir, recipe, options.seed, options.precision)

        dataset = open_dataset(recipe.dataset, options.data_dir)
        self.train_split = dataset.split(recipe.train_split)
        self.val_split = dataset.split(recipe.val_split or dataset.test_split)
        self.epoch_steps = steps_per_epoch(self.train_split, recipe.batch_size)
        self.total_steps = recipe.steps or max(1, round(recipe.epochs * self.epoch_steps))
        self._check_divisible()
        self.schedule = Schedule(recipe, self.total_steps, self.epoch_steps)
        self.reports = Reports(
            self.workdir, self.total_steps, recipe.batch_size, visible=distribution.is_chief
        )
        checkpoint = self._load_checkpoint()
        self.bad_images = BadImages()
        self.bad_file = self.workdir.bad_images(distribution.worker)
        if checkpoint:
            self.bad_images.read(self.bad_file)

        # The pixels' normalization is known last: the weights may say it.
        self.spec = _model_spec(recipe, dataset)
        model, preprocessing = self._build(None if checkpoint else recipe.weights)
        normalization = _held_normalization(checkpoint) if checkpoint else None
        if normalization is None:
            normalization = _normalization(
                self.spec, recipe, self.train_split, preprocessing, self.bad_images
            )
            self.bad_images.check(options.max_bad_images)
        preprocessing = dataclasses.replace(self.spec.preprocessing, normalization=normalization)
        self.spec = dataclasses.replace(self.spec, preprocessing=preprocessing)
        self.transform = Transform(preprocessing, recipe.augmentation)
        self.trainer = Trainer(
            model,
            recipe,
            distribution,
            seed=options.seed,
            accumulate=options.accumulate,
            jit=options.jit,
            remat=options.remat,
        )
        self.step = 0
        self.sums = [0.0, 0.0, 0.0]  # loss, correct, count since the epoch began
        self.history: list[dict] = []
        self.best = 0.0
        self.stopping = threading.Event()
        if distribution.is_chief and not self.workdir.recipe.exists():
            self.workdir.write_recipe(run_identity(recipe, options.seed, options.precision))
        if checkpoint:
            self._restore(checkpoint)

    def _check_divisible(self) -> None:
        parts = self.distribution.total_replicas * self.options.accumulate
        if self.recipe.batch_size % parts:
            raise InputError(
                f"the global batch of {self.recipe.batch_size} is not divisible by {parts} "
                f"({self.distribution.total_replicas} replicas x {self.options.accumulate} parts)"
            )

    def _build(self, weights: str | None) -> tuple[keras.Model, Preprocessing | None]:
        """The network, and how images are prepared for the weights that it starts from, if known."""
        preprocessing = None
        keras.utils.set_random_seed(self.options.seed)
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(PRECISIONS[self.options.precision])
        try:
            with self.distribution.scope():
                model = freeze(self.spec.build(**self._any_size()), self.recipe.freeze)
                if weights is not None:
                    with open_weights(weights, self.spec.config) as file:
                        file.load(model, transfer=True)
                    preprocessing = file.preprocessing_for(model)
        finally:
            keras.config.set_dtype_policy(policy)
        for layer in model.layers:
            if self.options.sync_batch_norm and isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True
        return model, preprocessing

    def _any_size(self) -> dict:
        """What lets the network take images of several sizes, where the recipe asks for it."""
        if not self.recipe.progressive:
            return {}
        shape = (None, None, self.recipe.channels)
        first = keras.config.image_data_format() == "channels_first"
        return {"input_shape": shape[::-1] if first else shape}

    def run(self) -> dict:
        """From wherever the workdir stands to the end."""
        if self.step < self.total_steps:
            self.reports.begin(self.step)
            try:
                with _on_sigterm(self.stopping.set):
                    while self.step < self.total_steps:
                        self._train_epoch()
            except tf.errors.OpError as error:
                lost = self.distribution.lost_workers(error)
                if not lost:
                    raise
                raise TrainingFailed(
                    f"lost {' and '.join(lost)} at step {self.step}; "
                    "start all workers again to go on from the last checkpoint"
                ) from error
            finally:
                self.reports.end()
        self._save_result()
        return self.history[-1]

    # -- one epoch ------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        epoch = self.step // self.epoch_steps
        end = min((epoch + 1) * self.epoch_steps, self.total_steps)
        iterator = self.distribution.iterate(self._batches(epoch, self.step % self.epoch_steps))
        pending, stop = None, False
        while self.step < end and not stop:
            first, count = self.step, self._steps_until(end)
            rates = [self.schedule.rate(step) for step in range(first, first + count)]
            results = self.trainer.train(
                iterator,
                tf.constant(rates, tf.float32),
                tf.constant(first, tf.int32),
                tf.constant(float(self.stopping.is_set())),
            )
            # While the device works on this call, the last one's results are read.
            stop = pending is not None and self._take(*pending)
            # Several workers learn from the results that one of them was asked to stop.
            stop = stop or (self.distribution.workers == 1 and self.stopping.is_set())
            pending = (first, rates, results)
            self.step = first + count
            must_save = stop or self._multiple(self.options.checkpoint_every)
            if must_save or self._multiple(self.schedule.window) or self.step == end:
                self._take(*pending)
                pending = None
            if must_save and self.step < end:
                self._checkpoint()
        if self.step == end:
            self._finish_epoch()
        if stop and self.step < self.total_steps:
            raise Preempted(
                f"stopped by SIGTERM after step {self.step} of {self.total_steps}, with a checkpoint; "
                "the same command goes on"
            )

    def _batches(self, epoch: int, first_step: int) -> tf.data.Dataset:
        """This worker's training batches of an epoch."""
        recipe, epochs = self.recipe, self.total_steps / self.epoch_steps
        size = progressive_size(recipe.progressive, epoch, epochs, recipe.image_size)
        return training_batches(
            self.train_split,
            self.transform.for_size(size),
            global_batch=self.recipe.batch_size,
            seed=self.options.seed,
            epoch=epoch,
            first_step=first_step,
            workers=self.distribution.workers,
            worker=self.distribution.worker,
            replicas=self.distribution.replicas,
            bad=self.bad_images,
        )

    def _multiple(self, interval: int | None) -> bool:
        return bool(interval) and self.step % interval == 0

    def _steps_until(self, end: int) -> int:
        """The length of the next call: to the next step after which something must be looked at."""
        stops = [end, self.step + self.options.steps_per_call]
        for interval in (self.options.checkpoint_every, self.schedule.window):
            if interval:
                stops.append((self.step // interval + 1) * interval)
        return min(stops) - self.step

    def _take(self, first: int, rates: list[float], results: tf.Tensor) -> bool:
        """Reads a call's results; True if some worker wants to stop."""
        stop = False
        self._check_bad_images()
        for offset, row in enumerate(results.numpy().astype("float64").tolist()):
            result = dict(zip(METRICS, row, strict=True))
            if not result["finite"] and result["loss_scale"] <= 1:
                raise TrainingFailed(self._not_finite(first + offset, rates[offset]))
            if result["finite"]:
                for i, name in enumerate(METRICS[:3]):
                    self.sums[i] += result[name]
                wrong = result["count"] - result["correct"]
                self.schedule.observe_errors(first + offset, wrong, result["count"])
            stop = stop or result["stopping"] > 0
        loss, correct, count = self.sums
        self.reports.advance(first + len(rates), loss / max(count, 1), correct / max(count, 1))
        return stop

    def _check_bad_images(self) -> None:
        """Stops the run where too many images cannot be decoded, and leaves their list."""
        try:
            self.bad_images.check(self.options.max_bad_images)
        except InputError:
            self.bad_images.write(self.bad_file)
            raise

    def _not_finite(self, step: int, rate: float) -> str:
        kept = checkpoints.list_checkpoints(self.workdir.checkpoints)
        good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        return f"loss or gradient is not finite at step {step + 1}, learning rate {rate:g}; {good}"

    def _finish_epoch(self) -> None:
        speed = self.reports.images_per_second()
        val_loss, val_top1 = self._evaluate()
        rate = self.schedule.rate(self.step - 1)
        self.schedule.observe_epoch(1 - val_top1)
        loss, correct, count = self.sums
        row = {
            "epoch": round(self.step / self.epoch_steps, 6),
            "step": self.step,
            "learning_rate": rate,
            "train_loss": loss / max(count, 1),
            "train_top1": correct / max(count, 1),
            "val_loss": val_loss,
            "val_top1": val_top1,
            "images_per_second": round(speed, 1),
        }
        self.history.append(row)
        self.best = max(self.best, val_top1)
        self.sums = [0.0, 0.0, 0.0]
        if self.distribution.is_chief:
            self.workdir.write_history(HISTORY, self.history)
        if self.bad_images.count:
            self.bad_images.write(self.bad_file)
            self.reports.say(f"{self.bad_images.count} images cannot be used: see {self.bad_file}")
        self._check_bad_images()
        self._checkpoint()
        self.reports.epoch(row, math.ceil(self.total_steps / self.epoch_steps))

    def _evaluate(self) -> tuple[float, float]:
        """Loss and top-1 over the validation split, with the averaged weights where there are such."""
        with self._averaged():
            return self._measure()

    def _measure(self) -> tuple[float, float]:
        """Loss and top-1 over the validation split, with the weights as they are."""
        dataset = evaluation_batches(
            self.val_split,
            self.transform.preprocessing,
            global_batch=self.recipe.batch_size,
            workers=self.distribution.workers,
            worker=self.distribution.worker,
            replicas=self.distribution.replicas,
            bad=self.bad_images,
        )
        iterator = self.distribution.iterate(dataset)
        total = np.zeros(3)
        for _ in range(-(-len(self.val_split) // self.recipe.batch_size)):
            total += self.trainer.evaluate(iterator).numpy()
        loss, correct, count = total.tolist()
        return loss / count, correct / count

    # -- what is kept ---------------------------------------------------------------------------

    @property
    def _identity(self) -> dict:
        """What a checkpoint must agree with."""
        return {
            "recipe": self.recipe.to_dict(),
            "seed": self.options.seed,
            "precision": self.options.precision,
        }

    def _checkpoint(self) -> None:
        if not self.distribution.is_chief:
            return
        arrays = {name: variable.numpy() for name, variable in self.trainer.named_variables().items()}
        for field in _NORMALIZATION:
            arrays[f"normalization/{field}"] = np.asarray(getattr(self.spec.normalization, field), "float64")
        numbers = {
            **self._identity,
            "sums": self.sums,
            "history": self.history,
            "best_val_top1": self.best,
            "schedule": self.schedule.state,
        }
        checkpoint = checkpoints.Checkpoint(self.step, arrays, numbers)
        checkpoints.save(self.workdir.checkpoints, checkpoint, self.options.keep)

    def _load_checkpoint(self) -> checkpoints.Checkpoint | None:
        """The newest one, if there is any; it is of this recipe, seed and precision."""
        checkpoint = checkpoints.load_newest(self.workdir.checkpoints, self.reports.say)
        if checkpoint is None:
            return None
        held = {key: checkpoint.numbers.get(key) for key in self._identity}
        # Older checkpoints lack what recipes have got since; it was as the default is.
        with contextlib.suppress(InputError, TypeError):
            held["recipe"] = Recipe.from_dict(held["recipe"]).to_dict()
        if held != self._identity:
            raise self._other_checkpoint()
        return checkpoint

    def _other_checkpoint(self) -> InputError:
        return InputError(f"the checkpoints in {self.workdir.checkpoints} are of another model or recipe")

    def _restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        numbers, variables = checkpoint.numbers, self.trainer.named_variables()
        arrays = {
            name: array for name, array in checkpoint.arrays.items() if not name.startswith("normalization/")
        }
        shapes = {name: tuple(value.shape) for name, value in variables.items()}
        if {name: array.shape for name, array in arrays.items()} != shapes:
            raise self._other_checkpoint()
        for name, variable in variables.items():
            variable.assign(arrays[name])
        self.step = checkpoint.step
        self.sums = numbers["sums"]
        self.history = numbers["history"]
        self.best = numbers["best_val_top1"]
        self.schedule.state = numbers["schedule"]
        if self.distribution.is_chief:
            self.workdir.write_history(HISTORY, self.history)
        self.reports.say(f"going on after step {self.step} of {self.total_steps}")

    def _save_result(self) -> None:
        """Writes what was learned; all workers take part in estimating statistics, the chief writes."""
        with self._averaged():
            if self.recipe.reestimate_batches:
                self._reestimate()
            if self.distribution.is_chief:
                save_weights(self.trainer.model, self.workdir.weights, self.spec)
        if not self.distribution.is_chief:
            return
        draw_curves(self.workdir, f"{self.recipe.model} on {self.recipe.dataset}")

    def _reestimate(self) -> None:
        """Averages batch normalization's statistics anew, over batches of an epoch of its own."""
        before = self._measure()[1]
        count = min(self.recipe.reestimate_batches, self.epoch_steps)
        iterator = self.distribution.iterate(self._batches(-(-self.total_steps // self.epoch_steps), 0))
        sums = self.trainer.batch_statistics(iterator)
        for _ in range(count - 1):
            sums = [a + b for a, b in zip(sums, self.trainer.batch_statistics(iterator), strict=True)]
        self.trainer.assign_statistics([total / count for total in sums])
        after = self._measure()[1]
        self.reports.say(
            f"statistics of batch normalization averaged over {count} batches: "
            f"val top-1 {after:.2%}, {before:.2%} with the moving averages"
        )

    def _averaged(self):
        return _Averaged(self.trainer)


class _Averaged:
    """While it lasts, the model has its averaged weights."""

    def __init__(self, trainer: Trainer):
        self._variables = trainer.model.variables
        self._averages = trainer.averaged_weights()

    def __enter__(self):
        if self._averages:
            self._kept = [variable.numpy() for variable in self._variables]
            self._assign(self._averages)

    def __exit__(self, *error):
        if self._averages:
            self._assign(self._kept)

    def _assign(self, values):
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)


class _on_sigterm:
    """Calls a function instead of dying, while it lasts, if this is the main thread."""

    def __init__(self, function: Callable[[], None]):
        self._function = function
        self._main = threading.current_thread() is threading.main_thread()

    def __enter__(self):
        if self._main:
            self._before = signal.signal(signal.SIGTERM, lambda number, frame: self._function())

    def __exit__(self, *error):
        if self._main:
            signal.signal(signal.SIGTERM, self._before)


def _model_spec(recipe: Recipe, dataset: Dataset) -> ModelSpec:
    """The network and its input; `InputError` where they do not fit the dataset or each other."""
    config = get_config(recipe.model, **recipe.model_overrides)
    if recipe.model_overrides.get("classes", dataset.classes) != dataset.classes:
        raise InputError(f"classes is {config.classes}, but {dataset.name} has {dataset.classes}")
    if recipe.image_size < config.total_stride:
        raise InputError(
            f"{recipe.model} needs images of at least {config.total_stride} pixels; "
            f"image_size is {recipe.image_size}"
        )
    return ModelSpec(
        model=recipe.model,
        overrides={key: value for key, value in recipe.model_overrides.items() if key != "classes"},
        classes=dataset.classes,
        input_shape=(recipe.image_size, recipe.image_size, recipe.channels),
        preprocessing=Preprocessing(
            recipe.image_size,
            get_augmentation(recipe.augmentation).evaluation_resize(recipe.image_size),
            "bilinear",
            Normalization.identity(recipe.channels),
        ),
        labels=tuple(dataset.class_names),
    )


def _normalization(
    spec: ModelSpec, recipe: Recipe, split: Split, preprocessing: Preprocessing | None, bad: BadImages
) -> Normalization:
    """What the recipe asks for.

    Args:
        spec: of the network.
        recipe: the run's.
        split: that is learned.
        preprocessing: of the weights that the network starts from, if they say it.
        bad: told of images that cannot be decoded.
    """
    if recipe.normalization == "imagenet":
        return Normalization.imagenet().for_channels(recipe.channels)
    if recipe.normalization != "weights":
        return dataset_statistics(
            split,
            recipe.image_size,
            recipe.channels,
            per_pixel=recipe.normalization == "per_pixel",
            resize=spec.preprocessing.resize,
            bad=bad,
        )
    if preprocessing is None:
        raise InputError(
            f"{recipe.weights} does not say how its images are prepared; set another normalization"
        )
    shape = preprocessing.normalization.shape
    if shape not in (spec.input_shape[2:], spec.input_shape):
        theirs, ours = ("x".join(map(str, sizes)) for sizes in (shape, spec.input_shape))
        raise InputError(
            f"{recipe.weights} has a mean image of {theirs}, the network an input of {ours}; "
            "set another normalization"
        )
    return preprocessing.normalization


def _held_normalization(checkpoint: checkpoints.Checkpoint) -> Normalization | None:
    """That of the run, unless the checkpoint is older than its being kept."""
    arrays = [checkpoint.arrays.get(f"normalization/{field}") for field in _NORMALIZATION]
    return None if any(array is None for array in arrays) else Normalization(*(a.tolist() for a in arrays))
