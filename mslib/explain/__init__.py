"""Where does a net look? Class activation maps of every layer, attributions; knows Keras, nothing of MRI."""

from .adapt import explainable, stacked
from .baselines import BASELINES, REPLACEMENTS, baseline_images, replace_removed
from .cam import CAM_METHODS, CAM_VARIANTS, LayerPass, explain_layers, layer_cams
from .groups import default_groups, superpixels, window_groups
from .lrp import lrp, relevance_flow, relevance_shares
from .lrp_rules import LRP_COMPOSITES, LRP_RULES, Composite
from .maps import average_cells, blank_maps, postprocess, upsample_maps
from .methods import METHODS, Method, attribute, completeness_gap, covered
from .model import (
    batches_of,
    check_inputs,
    last_convolution,
    logits_of,
    predict_copy,
    resolve_layers,
    spatial_layers,
)
from .randomisation import cascading_randomisation, randomised_copy

__all__ = [
    "BASELINES", "CAM_METHODS", "CAM_VARIANTS", "LRP_COMPOSITES", "LRP_RULES", "METHODS", "REPLACEMENTS", "Composite",
    "LayerPass", "Method", "attribute", "average_cells", "baseline_images", "batches_of", "blank_maps",
    "cascading_randomisation", "check_inputs", "completeness_gap", "covered", "default_groups", "explain_layers",
    "explainable", "last_convolution", "layer_cams", "logits_of", "lrp", "postprocess", "predict_copy",
    "randomised_copy", "relevance_flow", "relevance_shares", "replace_removed", "resolve_layers", "spatial_layers",
    "stacked", "superpixels", "upsample_maps", "window_groups"]
