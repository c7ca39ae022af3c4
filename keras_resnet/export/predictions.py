"""A picture of a few predictions, for the model card."""

from pathlib import Path

import keras
import numpy as np

from keras_resnet.export.serving import PROBABILITIES, serving_function

_IMAGES = 8


def draw_predictions(
    model: keras.Model,
    batch: tuple[np.ndarray, np.ndarray | None],
    labels: tuple[str, ...],
    path: str | Path,
) -> None:
    """Draws eight images with what the model takes them for, and how surely.

    Args:
        model: of `serving_model`.
        batch: images, float32 (batch, height, width, channels) of raw pixels 0-255, and int labels
            (batch,) or None. What is wrong is written in red.
        labels: class names in the order of the logits, or empty.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    images, truth = batch[0][:_IMAGES], batch[1]
    # As a function: called eagerly, Keras holds every layer's output until the end.
    probabilities = serving_function(model)(images)[PROBABILITIES].numpy()
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = list(figure.subplots(2, 4).flat)
    for axis in axes:
        axis.set_axis_off()
    for index, (axis, image, row) in enumerate(zip(axes, images, probabilities, strict=False)):
        pixels = image.clip(0, 255).astype("uint8")
        axis.imshow(pixels[..., 0] if pixels.shape[-1] != 3 else pixels, cmap="gray", vmin=0, vmax=255)
        best = int(row.argmax())
        wrong = truth is not None and best != int(truth[index])
        name = labels[best] if labels else f"class {best}"
        title = f"{name}  {100 * row[best]:.0f} %"
        if wrong:
            title += f"\nis {labels[int(truth[index])] if labels else f'class {int(truth[index])}'}"
        axis.set_title(title, fontsize=10, color="tab:red" if wrong else "black")
    # Without the software's name and version, the same pictures have the same bytes.
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})
