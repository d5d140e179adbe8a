"""The plots of the page: predictions, residuals and the map share one source, and so a selection.

Bokeh draws them on a canvas.  WebGL, which is quicker elsewhere, drew markers of other points where
some rows are NaN.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource, GlyphRenderer
    from bokeh.plotting import figure

COLOURS = ("#2f63a8", "#c1592f", "#3d7f4c", "#8a5aa8", "#8c6d1f", "#5b7083", "#b0386b", "#1d7f86")
"""One per group; each has 3 to 1 and more against white."""
MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star", "plus")
"""One per group, so that nothing depends on colours."""
INK = "#22262b"
HEIGHT = 380
MANY = 3_000
"""Points from which markers are small and faint, so that they show where many lie."""

MOST_TOOLTIPS = 3
"""Of points that lie on each other; each has a picture."""
TOOLTIP = """<div style="max-width: 15rem; font: 13px system-ui, sans-serif">
<img src="@row{custom}" alt="" style="max-width: 12rem; display: block">
<b>@id</b><br>@y_name @mos{0.00}, predicted @mapped{0.00}</div>"""


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """What is drawn of n videos."""

    ids: Sequence[str]
    mos: NDArray[np.float64]
    predicted: NDArray[np.float64]
    mapped: NDArray[np.float64]
    places: NDArray[np.float32]
    """[n, 2]: on the map."""
    fact: NDArray[np.float64]
    """[n]: what residuals are first drawn over."""
    groups: Sequence[int]
    """[n]: the number of each video's group."""
    score_name: str
    curve: tuple[NDArray[np.float64], NDArray[np.float64]]
    predicted_by: str
    over: str
    """What `fact` is."""
    map_text: str


def plots(points: Points) -> tuple[str, dict[str, str]]:
    """JavaScript, and an element for each of `scatter`, `residuals` and `map`."""
    from bokeh.document import Document
    from bokeh.embed import components
    from bokeh.models import ColumnDataSource, CustomJS

    columns: dict[str, Any] = {
        "id": list(points.ids),
        "row": np.arange(len(points.ids), dtype=np.int32),
        "mos": points.mos.astype(np.float32),
        "predicted": points.predicted.astype(np.float32),
        "mapped": points.mapped.astype(np.float32),
        "residual": (points.mapped - points.mos).astype(np.float32),
        "fact": points.fact.astype(np.float32),
        "map_x": points.places[:, 0],
        "map_y": points.places[:, 1],
        "group": [str(number) for number in points.groups],
    }
    source = ColumnDataSource(columns, name="videos")
    grid, mapped = points.curve
    curve = ColumnDataSource({"x": grid, "y": mapped}, name="curve")

    scatter = _figure(f"predicted by {points.predicted_by}", points.score_name)
    scatter.line("x", "y", source=curve, color=INK, line_width=2)
    _points(scatter, source, points, "predicted", "mos")
    residuals = _figure(points.over, f"predicted less {points.score_name}")
    residuals.hspan(y=[0], line_color=INK, line_dash="dashed")
    _points(residuals, source, points, "fact", "residual")
    layout = _figure("", "")
    layout.xaxis.major_label_text_alpha = layout.yaxis.major_label_text_alpha = 0
    _points(layout, source, points, "map_x", "map_y")

    document = Document()
    named = {"scatter": scatter, "residuals": residuals, "map": layout}
    for name, one in named.items():
        one.name = name
        document.add_root(one)
    source.selected.js_on_change(
        "indices", CustomJS(code="window.vqbankPage?.select(cb_obj.indices)")
    )
    models = {"source": source, "curve": curve, "scatter": scatter, "residuals": residuals}
    document.js_on_event(
        "document_ready",
        CustomJS(args=models, code="window.vqbankPage.ready({source, curve, scatter, residuals})"),
    )
    script, elements = components(named, wrap_script=False)
    return script, {name: str(element) for name, element in elements.items()}


def _figure(x: str, y: str) -> "figure":
    from bokeh.models import BoxSelectTool, PanTool, PlainText, ResetTool, TapTool, WheelZoomTool
    from bokeh.plotting import figure

    # No tool is dragged with at first, or a finger could not scroll the page.
    made = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        tools=[TapTool(), BoxSelectTool(), PanTool(), WheelZoomTool(), ResetTool()],
        active_drag=None,
        active_scroll=None,
        output_backend="canvas",
    )
    made.toolbar.logo = None
    # Names are text: dollars begin no formula.
    made.xaxis.axis_label, made.yaxis.axis_label = PlainText(text=x), PlainText(text=y)
    for axis in (made.xaxis, made.yaxis):
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "13px"
    return made


def _points(
    plot: "figure", source: "ColumnDataSource", points: Points, x: str, y: str
) -> "GlyphRenderer[Any]":
    from bokeh.models import CustomJSHover, HoverTool
    from bokeh.transform import factor_cmap, factor_mark

    codes = [str(number) for number in range(len(MARKERS))]
    many = len(points.ids) > MANY
    drawn = plot.scatter(
        x,
        y,
        source=source,
        size=4 if many else 8,
        marker=factor_mark("group", MARKERS, codes),
        color=factor_cmap("group", COLOURS, codes),
        alpha=0.3 if many else 0.75,
        nonselection_alpha=0.06 if many else 0.2,
        selection_line_color=INK,
        selection_alpha=1.0,
    )
    picture = CustomJSHover(code="return window.vqbankPage.picture(value)")
    tooltip = TOOLTIP.replace("@y_name", _escaped(points.score_name))
    plot.add_tools(
        HoverTool(
            renderers=[drawn], tooltips=tooltip, formatters={"@row": picture}, limit=MOST_TOOLTIPS
        )
    )
    return drawn


def _escaped(text: str) -> str:
    """Text in a tooltip, where `@` and `$` begin names of columns."""
    from html import escape

    return escape(text).replace("@", "&#64;").replace("$", "&#36;")
