"""How good are maps and classifiers, with what certainty? Arrays in, arrays and tables out."""

from .classification import (
    ClassificationReport,
    bootstrap_classification,
    classification_report,
    confusion_measures,
)
from .localisation import (
    average_precision,
    half_heat_share,
    heat_quantile,
    iou_at_median,
    mass_share,
    measure_maps,
    pointing_game,
)
from .statistics import (
    MIN_SUBJECTS,
    GroupComparison,
    Interval,
    adjust_p_values,
    bootstrap_subjects,
    compare_groups,
    proportion_interval,
)

__all__ = [
    "MIN_SUBJECTS", "ClassificationReport", "GroupComparison", "Interval", "adjust_p_values", "average_precision",
    "bootstrap_classification", "bootstrap_subjects", "classification_report", "compare_groups",
    "confusion_measures", "half_heat_share", "heat_quantile", "iou_at_median", "mass_share", "measure_maps",
    "pointing_game", "proportion_interval"]
