"""Figures of sleep staging: what is drawn is what was given, and what is missing is said."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.text import Text
from sleep_plots import MODALITIES, RELEVANCE, SIGNAL, STAGES, effects, night, relevant_epochs, stage_shares, table

from mslib import show


def words(fig):
    return " ".join(text.get_text() for text in fig.findobj(Text))


def test_a_night_shows_both_hypnograms_wrong_epochs_and_whole_shares():
    figure = night()
    top, middle, band = figure.axes
    assert [label.get_text() for label in top.get_yticklabels()] == ["W", "REM", "N1", "N2", "N3"]
    depth, _, _ = top.patches[0].get_data()
    assert depth.tolist() == [0] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [1] * 4, "depth, not number of the stage"
    assert len(middle.lines[0].get_xdata()) == 16, "all but the four of N2 are wrong"
    assert [patch.get_data()[0][0] for patch in band.patches] == [50, 80, 100]
    for name in (*MODALITIES, "predicted", "scored", "wrongly classified epoch", "n = 1", "Simulated night"):
        assert name in words(figure)


def test_epochs_are_coloured_where_relevance_is_and_nowhere_else():
    figure = relevant_epochs()
    traces = [one for one in figure.axes[0].collections if isinstance(one, LineCollection)]
    opacity = [one.get_colors()[:, 3] for one in traces]
    assert opacity[0][105:115].min() > 0.9 and opacity[0][:90].max() == opacity[2].max() == 0
    red, blue = traces[0].get_colors()[110], traces[1].get_colors()[205]
    assert red[0] > red[2] and blue[2] > blue[0], "for the stage red, against it blue"
    assert "no epoch of this stage is correctly classified" in words(figure) and "SIM01N1" in words(figure)


def test_an_epoch_without_relevance_has_no_colour():
    figure = relevant_epochs(relevance=0 * RELEVANCE)
    assert all(one.get_colors()[:, 3].max() == 0 for one in figure.axes[0].collections)


def test_points_stand_at_the_given_heights_and_missing_ones_are_dashes():
    figure = stage_shares()
    first, second = figure.axes
    dots = [line.get_ydata() for line in first.lines if line.get_marker() == "o"]
    assert np.nansum(dots) == 12 * 30 and np.isnan(dots).sum() == 3
    ends = [segment[:, 1] for one in first.collections for segment in one.get_segments() if len(segment)]
    assert len(ends) == 12 and np.allclose(ends, [20, 40])
    assert words(figure).count("–") == 6 and "AUC" in words(figure)
    assert second.lines[0].get_ydata() == [0.5, 0.5] and first.lines[0].get_ydata() == [0, 0]


def test_sure_effects_are_filled_and_unknown_ones_dashed():
    figure = effects()
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    filled = [dot.get_markerfacecolor() != "white" for dot in dots]
    assert len(dots) == 11 and sum(filled) == 4
    assert words(figure).count("–") == 4, "one estimate is missing, and a whole stage"
    assert "drug less placebo" in words(figure) and "80 % power" in words(figure)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: night(predicted=np.zeros(3, int)), r"one length, with 3 shares \(got 20, 20, 3 and \(20, 3\)\)"),
    (lambda: night(shares=np.ones((20, 2))), "with 3 shares"),
    (lambda: relevant_epochs(relevance=RELEVANCE[:5]), r"N2: signal and relevance must be finite, \(T, 3\)"),
    (lambda: relevant_epochs(relevance=SIGNAL * np.nan), "must be finite"),
    (lambda: show.plot_stage_shares({"a": pd.DataFrame({"stage": []})}, STAGES, MODALITIES), "a: the table lacks"),
    (lambda: show.plot_effects(table(), {}, STAGES, MODALITIES), "effects: the table lacks")])
def test_wrong_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()
