"""Pictures: of a report as PNG data URIs (training curves, slices of a case with its labels), of a comparison and of
the numbers of a table."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from umamba_seg.datasets.images import read_image
from umamba_seg.errors import UserError
from umamba_seg.text import times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_INK = "#808a96"  # readable on white and on black: the curves are transparent and serve both colour schemes
_PLANES = ("axial", "coronal", "sagittal")


class Volume(NamedTuple):
    """An image of any kind as a stack of slices.

    ``array`` is (z, y, x), or (z, y, x, 3) in colour; a 2-D image has one slice. ``spacing`` goes with z, y, x, in
    millimetres; it is 1 where the file format knows none.
    """

    array: np.ndarray
    spacing: tuple[float, float, float]


def colour(label: int) -> str:
    """Colour of a label value as ``#rrggbb``; neighbouring values differ most."""
    hue = (0.02 + (label - 1) * 0.381966) % 1  # the golden section never comes back to the same hue
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hsv_to_rgb(hue, 0.72, 1.0))


def read_volume(path: Path) -> Volume:
    """Read any image that nnU-Net reads.

    Medical volumes are turned to the patient's axes (x to the left, y to the back, z to the head), so that slices look
    as a radiologist expects them however the file was stored.

    Raises:
        UserError: The file is missing or cannot be read.
    """
    image = read_image(path)
    if len(image.spacing) == 2:
        array = image.array[:, None]
        (x, y), z = image.spacing, 1.0
    else:
        import SimpleITK as sitk

        volume = sitk.GetImageFromArray(image.array[0])
        volume.SetSpacing(image.spacing)
        volume.SetDirection(image.direction)
        volume = sitk.DICOMOrient(volume, "LPS")
        array = sitk.GetArrayFromImage(volume)[None]
        x, y, z = volume.GetSpacing()
    return Volume(array[0] if len(array) < 3 else np.moveaxis(array[:3], 0, -1), (z, y, x))


def curves(logging: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """Title -> data URI of the loss, the pseudo Dice and the learning rate over the epochs, from nnU-Net's log."""
    panels = {
        "Loss": {"training": "train_losses", "validation": "val_losses"},
        "Pseudo Dice": {"per epoch": "mean_fg_dice", "moving average": "ema_fg_dice"},
        "Learning rate": {"learning rate": "lrs"},
    }
    return {title: _curve({name: logging[key] for name, key in lines.items()}) for title, lines in panels.items()}


def _curve(lines: Mapping[str, Sequence[float]]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 2.5), layout="constrained")
    axes = figure.subplots()
    for (name, values), tint in zip(lines.items(), ("#3d8bfd", "#f28c28"), strict=False):
        axes.plot(
            range(1, len(values) + 1), values, color=tint, label=name, linewidth=1.6, marker="." * (len(values) < 2)
        )
    axes.set_xlabel("epoch", color=_INK)
    axes.tick_params(colors=_INK)
    axes.grid(color=_INK, alpha=0.25)
    axes.spines[:].set_visible(False)
    if len(lines) > 1:
        axes.legend(frameon=False, labelcolor=_INK)
    return _data_uri(figure, transparent=True)


def slices(
    image: Path, reference: Path | None, prediction: Path, ignore_label: int | None, window: tuple[float, float] | None
) -> str:
    """Data URI of up to three slices of a case: the image, the reference over it, the prediction over it.

    The plane is the one of the best resolution; the slices are spread over those that hold a label.

    Args:
        image: The image to show, grey or in colour.
        reference: Its labels, if known.
        prediction: The predicted labels.
        ignore_label: Label value that is drawn hatched in grey.
        window: Grey values shown as black and white. Default: the 0.5th and 99.5th percentile of the image.

    Raises:
        UserError: A file is missing, or a label file has another grid than the image.
    """
    from matplotlib.figure import Figure

    volume = read_volume(image)
    paths = {"prediction": prediction} if reference is None else {"reference": reference, "prediction": prediction}
    overlays = {title: _read_labels(path, volume, image) for title, path in paths.items()}
    axis = _plane(volume.spacing)
    chosen = _telling_slices(np.any([labels > 0 for labels in overlays.values()], axis=0), axis)
    low, high = window or np.percentile(volume.array, (0.5, 99.5))
    rows, columns = np.delete(volume.spacing, axis)
    extent = np.delete(volume.array.shape[:3], axis) * (rows, columns)
    width = 3.2
    figure = Figure(
        figsize=(width * (1 + len(overlays)), width * extent[0] / extent[1] * len(chosen)), facecolor="black"
    )
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1, wspace=0.02, hspace=0.02)
    grid = figure.subplots(len(chosen), 1 + len(overlays), squeeze=False)
    for panels, index in zip(grid, chosen, strict=True):
        for axes, (title, labels) in zip(panels, {"image": None, **overlays}.items(), strict=True):
            picture = _upright(volume.array, axis, index)
            axes.imshow(picture, cmap="gray", vmin=low, vmax=high, aspect=rows / columns)
            axes.axis("off")
            if labels is not None:
                _draw_labels(axes, _upright(labels, axis, index), ignore_label)
            where = f", {_PLANES[axis]} slice {index + 1}" if labels is None and len(volume.array) > 1 else ""
            axes.text(0.02, 0.98, title + where, transform=axes.transAxes, color="white", va="top", fontsize=8)
    return _data_uri(figure)


def _read_labels(path: Path, volume: Volume, image: Path) -> np.ndarray:
    labels = read_volume(path).array
    grid = volume.array.shape[:3]
    if labels.shape != grid:
        what = f"its grid {times(labels.shape)} is not that of the image {image}, {times(grid)} (z, y, x)"
        raise UserError(path, what, "give labels that belong to the image")
    return labels


def _plane(spacing: tuple[float, float, float]) -> int:
    """Axis to cut across: the coarsest one, and z where that is hardly coarser."""
    coarsest = int(np.argmax(spacing))
    return coarsest if spacing[coarsest] > 1.2 * spacing[0] else 0


def _telling_slices(foreground: np.ndarray, axis: int) -> list[int]:
    """Up to three indices along ``axis``, at the quartiles of the slices that hold foreground (or of all slices)."""
    others = tuple(other for other in range(3) if other != axis)
    candidates = np.flatnonzero(foreground.any(axis=others))
    if not len(candidates):
        candidates = np.arange(foreground.shape[axis])
    return sorted({int(candidates[int(share * (len(candidates) - 1))]) for share in (0.25, 0.5, 0.75)})


def _upright(array: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice with the patient's front (axial) or head (coronal, sagittal) on top."""
    picture = np.take(array, index, axis=axis)
    return picture if axis == 0 else picture[::-1]


def _draw_labels(axes: Axes, labels: np.ndarray, ignore_label: int | None) -> None:
    for label in np.unique(labels[labels > 0]).tolist():
        mask = (labels == label).astype(float)
        if label == ignore_label:
            axes.contourf(mask, levels=[0.5, 1.5], colors=["#9e9e9e"], alpha=0.5, hatches=["////"])
            continue
        axes.contourf(mask, levels=[0.5, 1.5], colors=[colour(label)], alpha=0.35)
        axes.contour(mask, levels=[0.5], colors=[colour(label)], linewidths=1.2)


class Strip(NamedTuple):
    """A row of :func:`strips`: its name, a difference for each case, and their mean with the ends of its interval."""

    name: str
    values: np.ndarray
    mean: float
    low: float
    high: float


def strips(panels: Mapping[str, Sequence[Strip]], axis: str, sides: Mapping[str, tuple[str, str]]) -> bytes:
    """Differences within cases as a PNG: a point for each case, beside zero, and the mean with its interval.

    Args:
        panels: Title -> rows, from above. Values that are not finite are not drawn; the row's name counts them.
        axis: What the numbers are.
        sides: Title -> what it means to be left and right of zero.
    """
    import matplotlib.style as matplotlib_style
    from matplotlib.figure import Figure

    rows = max(len(strips) for strips in panels.values())
    with matplotlib_style.context("default"):  # nnU-Net leaves its own, with letters of twice the size
        figure = Figure(figsize=(7, (1.3 + 0.42 * rows) * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, (title, strips) in zip(grid, panels.items(), strict=True):
            _draw_strips(axes, strips)
            axes.set_title(title, fontsize=10)
            for place, words in zip((0, 1), sides[title], strict=True):
                side = ("left", "right")[place]
                tint = _SIDES[place]
                axes.text(place, 1.0, words, transform=axes.transAxes, ha=side, va="bottom", fontsize=8, color=tint)
            axes.set_xlabel(axis, fontsize=9)
        return _png(figure)


_SIDES = ("#b35900", "#0072b2")  # orange and blue differ for every kind of colour vision


def _draw_strips(axes: Axes, strips: Sequence[Strip]) -> None:
    names = []
    generator = np.random.default_rng(0)  # the scatter across a row carries nothing
    for row, strip in enumerate(strips):
        values = strip.values[np.isfinite(strip.values)]
        heights = row + generator.uniform(-0.22, 0.22, len(values))
        tints = np.select([values < 0, values > 0], _SIDES, "#6e6e6e")
        axes.scatter(values, heights, s=14, c=tints, alpha=0.55, linewidths=0)
        axes.plot([strip.low, strip.high], [row, row], color="black", linewidth=2.2, solid_capstyle="butt")
        axes.plot(strip.mean, row, marker="D", color="black", markersize=6, markeredgecolor="white")
        beyond = np.count_nonzero(np.isinf(strip.values))
        names.append(f"{strip.name} ({beyond} infinite)" if beyond else strip.name)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(strips)), names, fontsize=9)
    axes.set_ylim(len(strips) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)


class Dot(NamedTuple):
    """A row of a panel of :func:`dots`; NaN for what is not there.

    Attributes:
        name: Of the method.
        value: Our number.
        low: Where its interval begins.
        high: Where it ends.
        published: The number of a paper.
        light: Whether it is drawn in a lighter tone, since it belongs to the row above.
    """

    name: str
    value: float
    low: float
    high: float
    published: float
    light: bool


class Dots(NamedTuple):
    """A panel of :func:`dots`: its title, which side is better, and its rows from above."""

    title: str
    better: str
    rows: Sequence[Dot]


_ABREAST = 3
"""Panels beside each other in 900 pixels."""
_DARK, _LIGHT = "#0072b2", "#7fb8dd"


def dots(panels: Sequence[Dots]) -> bytes:
    """Numbers of methods as a PNG, 900 pixels wide: a dot with its interval, and a hollow diamond for a published one.

    All panels have the same rows.
    """
    import matplotlib.style as matplotlib_style
    from matplotlib.figure import Figure

    columns = min(_ABREAST, len(panels))
    lines = -(-len(panels) // columns)
    rows = len(panels[0].rows)
    with matplotlib_style.context("default"):
        figure = Figure(figsize=(5.625, (0.62 + 0.19 * rows) * lines + 0.25), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
        for axes, panel in zip(grid, panels, strict=False):
            _draw_dots(axes, panel)
        for axes in list(grid)[len(panels) :]:
            axes.axis("off")
        figure.legend(
            handles=_dot_legend(panels),
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=6.5,
            handletextpad=0.4,
            columnspacing=1.6,
        )
        return _png(figure)


def _draw_dots(axes: Axes, panel: Dots) -> None:
    for row, dot in enumerate(panel.rows):
        tint = _LIGHT if dot.light else _DARK
        if row % 2 == 0:
            axes.axhspan(row - 0.5, row + 0.5, color="#f3f5f7", linewidth=0, zorder=0)
        axes.plot([dot.low, dot.high], [row, row], color=tint, linewidth=1.8, solid_capstyle="round", zorder=2)
        axes.plot(dot.value, row, "o", color=tint, markersize=4.6, markeredgecolor="white", markeredgewidth=0.6)
        axes.plot(dot.published, row, "D", color="none", markeredgecolor=_SIDES[0], markersize=4, zorder=4)
    axes.set_title(panel.title, fontsize=7.5, pad=4)
    axes.set_xlabel(panel.better, fontsize=6.5, color="#5c6874", labelpad=1)
    axes.set_yticks(range(len(panel.rows)), [dot.name for dot in panel.rows], fontsize=7)
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.locator_params(axis="x", nbins=4)
    axes.tick_params(axis="x", labelsize=6.5, length=2)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#d5dae0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _dot_legend(panels: Sequence[Dots]) -> list[Line2D]:
    """Of what is drawn."""
    from matplotlib.lines import Line2D

    drawn = [dot for panel in panels for dot in panel.rows]
    line = {"linewidth": 1.8, "marker": "o", "markersize": 4.6, "markeredgecolor": "white"}
    legend = [Line2D([], [], color=_DARK, label="ours, 95 % interval over cases", **line)]
    if any(dot.light for dot in drawn):
        legend.append(Line2D([], [], color=_LIGHT, label="the same without the scan", **line))
    if any(np.isfinite(dot.published) for dot in drawn):
        hollow = {"linestyle": "", "marker": "D", "markersize": 4, "markerfacecolor": "none"}
        legend.append(Line2D([], [], markeredgecolor=_SIDES[0], label="published", **hollow))
    return legend


def _png(figure: Figure, transparent: bool = False) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, transparent=transparent)
    return buffer.getvalue()


def _data_uri(figure: Figure, transparent: bool = False) -> str:
    return "data:image/png;base64," + base64.b64encode(_png(figure, transparent)).decode("ascii")
