"""Curves: the data and the stage marks are in the drawing, and the drawing is the same each time."""

import base64
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mmrl_core.runs.charts import COLOURS, DASHES, SMOOTHED_FROM, Series, Stage, chart_uri, draw_chart, moving_average

STAGES = [Stage("sft", 1, 60), Stage("grpo", 61, 150)]
SVG_URI = "data:image/svg+xml;base64,"


def evaluated(label: str, values: list[float]) -> Series:
    return Series(label, [0, 60, 150][: len(values)], values, is_measured=True)


def logged(num_steps: int, *, first: int = 1) -> Series:
    steps = list(range(first, first + num_steps))
    return Series("", steps, [step % 7 for step in steps])


def svg_of(*series: Series, stages: list[Stage] = STAGES) -> str:
    uri = chart_uri(draw_chart(series, stages))
    assert uri.startswith(SVG_URI)
    return base64.b64decode(uri.removeprefix(SVG_URI)).decode()


def drawn_at(axes, x: float) -> list:
    """Vertical lines at a step."""
    return [line for line in axes.lines if list(line.get_xdata()) == [x, x]]


def test_an_evaluation_is_one_line_with_a_marker_at_each_number():
    (axes,) = draw_chart([evaluated("greedy", [0.1, 0.4, 0.6])], STAGES).axes
    line = axes.lines[0]
    assert list(line.get_xdata()) == [0, 60, 150] and list(line.get_ydata()) == [0.1, 0.4, 0.6]
    assert line.get_marker() == "o"


def test_short_curves_are_drawn_as_logged():
    (axes,) = draw_chart([logged(SMOOTHED_FROM - 1)], STAGES[:1]).axes
    (line,) = axes.lines
    assert list(line.get_ydata()) == list(logged(SMOOTHED_FROM - 1).values)


def test_long_curves_are_faint_points_behind_a_moving_average():
    series = logged(60)
    (axes,) = draw_chart([series], STAGES[:1]).axes
    points, average = axes.lines
    assert list(points.get_ydata()) == list(series.values)
    assert points.get_linestyle() == "None" and points.get_alpha() < 0.5
    assert average.get_ydata() == pytest.approx(moving_average(series.values))


def test_a_training_curve_breaks_where_a_stage_ends():
    series = logged(20, first=51)
    (axes,) = draw_chart([series], STAGES).axes
    before, after = (list(line.get_xdata()) for line in axes.lines[:2])
    assert before == list(range(51, 61)) and after == list(range(61, 71))
    assert axes.lines[0].get_color() == axes.lines[1].get_color()


def test_the_end_of_a_stage_is_marked_and_both_stages_are_named():
    (axes,) = draw_chart([evaluated("", [0.1, 0.4, 0.6])], STAGES).axes
    (mark,) = drawn_at(axes, 60)
    assert mark.get_linestyle() == "--"
    names = {text.get_text(): text.xy[0] for text in axes.texts}
    assert 0 < names["sft"] < 60 < names["grpo"] < 150


def test_a_stage_out_of_sight_is_not_named():
    (axes,) = draw_chart([logged(80, first=71)], STAGES).axes
    assert [text.get_text() for text in axes.texts] == ["grpo"] and not drawn_at(axes, 60)


def test_curves_differ_in_colour_and_in_dash_and_are_named():
    figure = draw_chart([evaluated(f"T = {i}", [0.1 * i, 0.2]) for i in range(6)], STAGES)
    lines = figure.axes[0].lines[:6]
    assert len({line.get_color() for line in lines}) == 6
    assert len({str(line._dash_pattern) for line in lines}) == len(DASHES)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"T = {i}" for i in range(6)]


def test_28_curves_differ_in_the_pair_of_colour_and_dash():
    pairs = {(index % len(COLOURS), index % len(DASHES)) for index in range(28)}
    assert len(pairs) == 28


def test_one_curve_has_no_legend():
    assert draw_chart([evaluated("greedy", [0.1, 0.2])], STAGES).legends == []


def test_the_axis_starts_at_zero_unless_that_would_hide_the_curve():
    assert draw_chart([evaluated("", [0.1, 0.4, 0.6])], STAGES).axes[0].get_ylim()[0] == 0
    assert draw_chart([evaluated("", [0.93, 0.94, 0.96])], STAGES).axes[0].get_ylim()[0] > 0.9
    assert draw_chart([evaluated("", [-0.1, 0.4])], STAGES).axes[0].get_ylim()[0] < -0.1


def test_the_same_curves_give_the_same_bytes():
    series = [logged(120), evaluated("b", [0.1, 0.2])]
    assert chart_uri(draw_chart(series, STAGES)) == chart_uri(draw_chart(series, STAGES))
    assert "<dc:date>" not in svg_of(*series)


def test_a_users_settings_change_nothing():
    import matplotlib

    plain = svg_of(logged(50))
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        assert svg_of(logged(50)) == plain


def test_many_steps_stay_small():
    assert len(svg_of(logged(20_000), stages=[Stage("grpo", 1, 20_000)])) < 150_000


@pytest.mark.parametrize("label", ["$x_{", "<b>&", "_hidden", "奖励", "a" * 300])
def test_any_name_can_be_drawn(label: str):
    svg = svg_of(evaluated(label, [0.1, 0.2]), evaluated("b", [0.1, 0.3]), stages=[Stage(label[:9], 1, 60)])
    assert label in "".join(ET.fromstring(svg).itertext())


@pytest.mark.parametrize("values", [[0.0], [0.5, 0.5, 0.5], [1e300, -1e300], [1e-300, 2e-300], [1e-6, 3e-6]])
def test_any_finite_numbers_can_be_drawn(values: list[float]):
    ET.fromstring(svg_of(evaluated("", values)))
    ET.fromstring(svg_of(Series("", list(range(1, len(values) + 1)), values), stages=[]))


def test_moving_average_is_the_mean_of_a_tenth_around_each_value():
    values = np.arange(100.0) ** 2
    averaged = moving_average(values)
    assert averaged[50] == pytest.approx(values[45:56].mean())
    assert averaged[2] == pytest.approx(values[:5].mean()) and averaged[-3] == pytest.approx(values[-5:].mean())
    assert (averaged[0], averaged[-1]) == (values[0], values[-1])


def test_importing_charts_and_the_report_does_not_import_matplotlib():
    code = "import sys, mmrl_core.runs.charts, mmrl_core.runs.report; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"


def test_drawing_does_not_import_pyplot():
    code = (
        "import sys; from mmrl_core.runs.charts import *; chart_uri(draw_chart([Series('', [1, 2], [1, 2])], []));"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
