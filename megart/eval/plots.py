"""Plots as inline SVG, by matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DependencyError

_COLOURS = ["#3867d6", "#eb7f3a", "#20a37a", "#c0392b", "#8e5bb5", "#7f8c8d", "#c8a415", "#1b8fa8"]


def bars(values: Mapping[str, Mapping[str, Any]], figure: str, names: Mapping[str, str], axis: str) -> str:
    """A horizontal bar per method for one figure of ``tables.by``, with its interval."""
    shown = [(names[m], v[figure]) for m, v in values.items() if figure in v]
    if not shown:
        return ""
    figure_, axes = _axes(6.4, 0.5 + 0.38 * len(shown))
    for row, (_, estimate) in enumerate(shown):
        mean = 100 * estimate["mean"]
        reach = [[mean - 100 * estimate["low"]], [100 * estimate["high"] - mean]]
        axes.barh(row, mean, color=_COLOURS[0], height=0.62)
        axes.errorbar(mean, row, xerr=[[max(0, r[0])] for r in reach], color="#222", capsize=3, lw=1)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{axis}, %")
    axes.grid(axis="y", visible=False)
    return _svg(figure_)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, *, log_x: bool = False, log_y: bool = False,
    percent: bool = False,
) -> str:  # fmt: skip
    """A line per series of (x, y) points."""
    if not any(series.values()):
        return ""
    figure, axes = _axes(6.4, 3.2)
    for colour, (name, points) in zip(_COLOURS * 3, series.items(), strict=False):
        if points:
            xs, ys = zip(*sorted(points), strict=True)
            axes.plot(xs, [100 * v for v in ys] if percent else ys, "o-", ms=3.5, lw=1.4, label=name, color=colour)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    if percent:
        axes.set_ylim(-3, 103)
    axes.set_xlabel(x)
    axes.set_ylabel(f"{y}, %" if percent else y)
    axes.legend(frameon=False, fontsize=8)
    return _svg(figure)


def _axes(wide: float, high: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(f"the report needs {error.name}; run: pip install 'megart[eval]'") from None
    figure = Figure(figsize=(wide, high), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib

    buffer = io.StringIO()
    # Letters stay letters: smaller, and a reader can search them. A fixed salt: the same data, the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "megart", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), count=1, flags=re.DOTALL)
