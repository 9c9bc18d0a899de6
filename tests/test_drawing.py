"""Pictures show the page that they stand on, and no name hides a curve."""

import io

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from mom_jax.drawing import legend_beside, one_panel, picture, style


def curves(count: int) -> Figure:
    """A panel of named lines, with its legend."""
    figure, axes = one_panel("title", "x", "y")
    for number in range(count):
        axes.plot([0, 1], [number, 2 * number], label=f"memory {number}")
    legend_beside(figure)
    return figure


def test_the_page_shows_through():
    pixels = matplotlib.image.imread(io.BytesIO(picture(lambda: curves(3))))
    assert pixels[0, 0, 3] == 0 and (pixels[..., 3] == 0).mean() > 0.5


@pytest.mark.parametrize("count", [1, 4, 20])
def test_a_legend_hides_nothing(count):
    with style():
        figure = curves(count)
        figure.draw_without_rendering()
        (legend,) = figure.legends
        (axes,) = figure.axes
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        assert axes.get_window_extent().width > 50 and len(legend.get_texts()) == count
