"""From raw images to preprocessed derivatives: bias correction, co-registration, scaling, slices, QC."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "intensity": ["correct_bias", "estimate_bias", "fit_log_fields", "scale_intensity"],
    "pipeline": ["align", "describe_derivatives", "preprocess_subject", "unscaled_images"],
    "qc": ["edge_agreement"],
    "registration": ["Registration", "brain_mask", "register_rigid"],
    "slices": ["SliceStack", "load_stack", "plane_to_volume", "save_stack", "select_slices", "slice_stack",
               "write_volume"]})
