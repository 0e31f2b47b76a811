"""Curves of a run, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from typing import Any

INK, SOFT, LINE = "#1c2430", "#5d6878", "#dfe4ea"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#882255", "#8c96a3")
"""Told apart by all kinds of eyes (Okabe and Ito, https://jfly.uni-koeln.de/color/; wine for yellow, pale on white)."""
STYLES = ("o-", "s--", "^:", "D-.")
"""What tells the ninth curve from the first: markers, where points are few, and lines."""
ALL = "all"
"""The curve of the whole among those of its parts."""
PANEL_INCHES, LEGEND_INCHES = (5.2, 2.5), 1.25
MANY = 4
"""With more curves than this, their names stand beside the axes, where they hide none."""
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
        panels.append(Panel(key.replace("_", " "), {ALL if shares else "": evaluated[key], **shares}))
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
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, LEGEND_INCHES / width)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _draw(axes: Any, panel: Panel, legend_width: float) -> None:
    """Draw a panel; ``legend_width``, as a part of the figure's, is what many names take from the axes."""
    curves = {name: points for name, points in panel.curves.items() if points}
    looks = cycle(product(STYLES, COLOURS))
    for name, points in curves.items():
        style, colour = ("o-", INK) if name == ALL else next(looks)
        steps, values = zip(*points, strict=True)
        style = style if len(points) < 12 else style[1:]
        axes.plot(steps, values, style, color=colour, label=name, linewidth=2.6 if name == ALL else 1.6, markersize=5)
    axes.set_title(panel.title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_ylim(*panel.bounds)
    axes.tick_params(colors=SOFT, labelsize=8)
    axes.grid(color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LINE)
    steps = [step for points in curves.values() for step, _ in points]
    axes.locator_params("x", nbins=6, integer=True, min_n_ticks=min(5, 1 + max(steps) - min(steps)))
    if len(curves) > MANY:
        place = axes.get_position()
        axes.set_position((place.x0, place.y0, place.width - legend_width, place.height))
        axes.legend(fontsize=8, frameon=False, labelcolor=SOFT, loc="center left", bbox_to_anchor=(1.01, 0.5))
    elif len(curves) > 1:
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
