"""Curves of a run, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INK, SOFT, LINE = "#1c2430", "#5d6878", "#dfe4ea"
COLOURS = ("#1f6feb", "#d9730d", "#1a7f4b", "#8e44ad", "#c0392b", "#5d6878")
PANEL_INCHES = (5.2, 2.5)
LEARNING_RATES = "learning rate"

Points = list[tuple[int, float]]
"""A curve: (step, value), in order."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes and the curves on it, by name. ``bounds`` are fixed ends of the vertical axis."""

    title: str
    curves: Mapping[str, Points]
    bounds: tuple[float | None, float | None] = (None, None)


def run_panels(history: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Sort the lines of a log into panels: losses, then what the evaluations measured, then how the run went."""
    trained, evaluated = _curves(history, "train"), _curves(history, "evaluation")
    losses = {"loss": ("training", trained), "validation_loss": ("validation", evaluated)}
    panels = [Panel("loss", {name: curves.pop(key) for key, (name, curves) in losses.items() if key in curves})]
    for key in [key for key in trained if key.startswith("loss/")]:
        name = key.removeprefix("loss/")
        curves = {"training": trained.pop(key), "validation": evaluated.pop(f"validation_{key}", [])}
        panels.append(Panel(f"loss: {name}", curves))
    for key in [key for key in evaluated if key.partition("/")[0] not in evaluated or "/" not in key]:
        shares = {name.removeprefix(f"{key}/"): evaluated[name] for name in evaluated if name.startswith(f"{key}/")}
        panels.append(Panel(key.replace("_", " "), {"all" if shares else "": evaluated[key], **shares}))
    rates = {key.removeprefix("lr/"): trained.pop(key) for key in list(trained) if key.startswith("lr/")}
    panels.append(Panel(LEARNING_RATES, _one_of_equals(rates)))
    panels += [Panel(key.replace("_", " "), {"": curve}, (0.0, None)) for key, curve in trained.items()]
    return [panel for panel in panels if any(panel.curves.values())]


def draw_panels(panels: Sequence[Panel], columns: int = 2, dpi: int = 110) -> bytes:
    """Draw panels in a grid, row by row; returns the bytes of a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # not pyplot, which keeps figures and picks windows
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    width, height = PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows
    figure = Figure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)
    # set by hand: matplotlib's own layout measures every label, which takes as long as drawing all of it
    figure.subplots_adjust(
        left=0.6 / width, right=1 - 0.15 / width, top=1 - 0.3 / height, bottom=0.3 / height, hspace=0.4, wspace=0.2
    )
    grid = figure.subplots(rows, columns, squeeze=False).flat
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel)
    for axes in list(grid)[len(panels) :]:
        axes.set_axis_off()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw(axes: Any, panel: Panel) -> None:
    curves = {name: points for name, points in panel.curves.items() if points}
    for colour, (name, points) in zip(COLOURS * (1 + len(curves) // len(COLOURS)), curves.items(), strict=False):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, label=name, linewidth=1.8, marker="o" if len(points) < 12 else None)
    axes.set_title(panel.title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_ylim(*panel.bounds)
    axes.tick_params(colors=SOFT, labelsize=8)
    axes.grid(color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)
    if len(curves) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=SOFT)


def _curves(history: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Points]:
    """The curves in a log's lines of one kind, by key; what is no number (or not finite, so null) has no point."""
    curves: dict[str, Points] = {}
    for line in history:
        if line["kind"] != kind:
            continue
        for key, value in line.items():
            if key not in ("kind", "step") and isinstance(value, int | float) and not isinstance(value, bool):
                curves.setdefault(key, []).append((line["step"], value))
    return curves


def _one_of_equals(curves: Mapping[str, Points]) -> dict[str, Points]:
    """Leave out curves that lie exactly on an earlier one, such as the rates of a part's two parameter groups."""
    kept: dict[str, Points] = {}
    for name, points in curves.items():
        if points not in kept.values():
            kept[name] = points
    return kept
