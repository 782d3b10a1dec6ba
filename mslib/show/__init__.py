"""Figures and 3-D viewers: what a reader sees.

Every ``plot_...`` gives a `matplotlib.figure.Figure` with its `caption` (what is drawn, n, interval) below it
and raises a ValueError where its table lacks a column.
"""

from .attribution import (
    plot_attributions,
    plot_checks,
    plot_importance,
    plot_localisation,
    plot_scores,
    plot_shares,
)
from .curves import plot_depth_curves
from .figure import label_of, readable, save_figure, save_scans
from .maps import PUBLISHED_LAYERS, plot_layer_columns, plot_layer_grid
from .relevance import plot_flow, plot_relations, plot_share_points
from .sleep import plot_night, plot_relevant_epochs
from .slices import plot_examples, plot_summary
from .subjects import plot_cohort, plot_registration_errors
from .training import plot_accuracies, plot_confusions, plot_learning_curves, plot_psychometric
from .viewers import write_viewer

__all__ = [
    "PUBLISHED_LAYERS", "label_of", "plot_accuracies", "plot_attributions", "plot_checks", "plot_cohort",
    "plot_confusions", "plot_depth_curves", "plot_examples", "plot_flow", "plot_importance",
    "plot_layer_columns", "plot_layer_grid", "plot_learning_curves", "plot_localisation", "plot_night",
    "plot_psychometric", "plot_registration_errors", "plot_relations", "plot_relevant_epochs", "plot_scores",
    "plot_share_points", "plot_shares", "plot_summary", "readable", "save_figure", "save_scans",
    "write_viewer"]
