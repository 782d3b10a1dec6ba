"""Where does a net look? Class activation maps of every layer, attributions; knows Keras, nothing of MRI."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "adapt": ["explainable", "stacked"],
    "baselines": ["BASELINES", "REPLACEMENTS", "baseline_images", "replace_removed"],
    "cam": ["CAM_METHODS", "CAM_VARIANTS", "LayerPass", "explain_layers", "layer_cams"],
    "groups": ["default_groups", "superpixels", "window_groups"],
    "lrp": ["lrp", "relevance_flow", "relevance_shares"],
    "lrp_rules": ["LRP_COMPOSITES", "LRP_RULES", "Composite"],
    "maps": ["average_cells", "blank_maps", "postprocess", "upsample_maps"],
    "methods": ["METHODS", "Method", "attribute", "completeness_gap", "covered"],
    "model": ["batches_of", "check_inputs", "last_convolution", "logits_of", "predict_copy", "resolve_layers",
              "spatial_layers"],
    "randomisation": ["cascading_randomisation", "randomised_copy"]})
