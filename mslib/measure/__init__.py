"""How good are maps and classifiers, with what certainty? Arrays in, arrays and tables out."""

from .classification import ClassificationReport, classification_report, confusion_measures
from .faithfulness import area_under_removal, removal_curve, shuffled_maps
from .localisation import measure_maps
from .mixed import mixed_effects
from .modality import (
    correlation_by_chance,
    feature_importance_score,
    importance_correlation,
    map_similarity,
    modality_totals,
    shapley_values,
    share_inside,
)
from .statistics import (
    MIN_SUBJECTS,
    adjust_p_values,
    bootstrap_means,
    compare_groups,
    interval_text,
    mean_by,
    mean_interval,
    percentile_interval,
    proportion_interval,
    resample_counts,
)

__all__ = [
    "MIN_SUBJECTS", "ClassificationReport", "adjust_p_values", "area_under_removal", "bootstrap_means",
    "classification_report", "compare_groups", "confusion_measures", "correlation_by_chance",
    "feature_importance_score", "importance_correlation", "interval_text", "map_similarity", "mean_by",
    "mean_interval", "measure_maps", "mixed_effects", "modality_totals", "percentile_interval",
    "proportion_interval", "removal_curve", "resample_counts", "shapley_values", "share_inside", "shuffled_maps"]
