"""How good are maps and classifiers, with what certainty? Arrays in, arrays and tables out."""

from .classification import (
    ClassificationReport,
    bootstrap_classification,
    classification_report,
    confusion_measures,
)
from .faithfulness import area_under_removal, delta_aupc, removal_curve, removed_at, shuffled_maps
from .localisation import (
    average_precision,
    half_heat_share,
    heat_quantile,
    iou_at_median,
    mass_share,
    measure_maps,
    pointing_game,
)
from .mixed import mixed_effects
from .modality import (
    correlation_by_chance,
    feature_importance_score,
    feature_portions,
    importance_correlation,
    modality_totals,
    shapley_values,
    subset_worths,
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
    "MIN_SUBJECTS", "ClassificationReport", "GroupComparison", "Interval", "adjust_p_values", "area_under_removal",
    "average_precision", "bootstrap_classification", "bootstrap_subjects", "classification_report", "compare_groups",
    "confusion_measures", "correlation_by_chance", "delta_aupc", "feature_importance_score", "feature_portions",
    "half_heat_share", "heat_quantile", "importance_correlation", "iou_at_median", "mass_share", "measure_maps",
    "mixed_effects", "modality_totals", "pointing_game", "proportion_interval", "removal_curve", "removed_at",
    "shapley_values", "shuffled_maps", "subset_worths"]
