"""Figures, the report, 3-D viewers and the gallery: what a reader sees."""

from .attribution import plot_attributions, plot_importance, plot_scores, plot_shares
from .curves import plot_depth_curves, plot_groups, plot_lobes, plot_randomisation
from .figure import save_figure
from .gallery import GalleryEntry, write_gallery
from .maps import PUBLISHED_FIGURE_3, PUBLISHED_FIGURE_4, plot_layer_block, plot_layer_grid
from .relevance import plot_flow, plot_relations, plot_share_bars, plot_subject_shares
from .report import SECTIONS, Panel, Section, build_report
from .sleep import plot_effects, plot_night, plot_relevant_epochs, plot_stage_shares
from .slices import plot_examples, plot_headline, plot_registration
from .subjects import plot_cohort, plot_qc_table, plot_registration_errors
from .training import plot_accuracies, plot_confusions, plot_learning_curves
from .viewers import write_viewer

__all__ = [
    "PUBLISHED_FIGURE_3",
    "PUBLISHED_FIGURE_4",
    "SECTIONS",
    "GalleryEntry",
    "Panel",
    "Section",
    "build_report",
    "plot_accuracies",
    "plot_attributions",
    "plot_cohort",
    "plot_confusions",
    "plot_depth_curves",
    "plot_effects",
    "plot_examples",
    "plot_flow",
    "plot_groups",
    "plot_headline",
    "plot_importance",
    "plot_layer_block",
    "plot_layer_grid",
    "plot_learning_curves",
    "plot_lobes",
    "plot_night",
    "plot_qc_table",
    "plot_randomisation",
    "plot_registration",
    "plot_registration_errors",
    "plot_relations",
    "plot_relevant_epochs",
    "plot_scores",
    "plot_share_bars",
    "plot_shares",
    "plot_stage_shares",
    "plot_subject_shares",
    "save_figure",
    "write_gallery",
    "write_viewer",
]
