"""From raw images to preprocessed derivatives: bias correction, co-registration, scaling, slices, QC."""

from .intensity import correct_bias, estimate_bias, fit_log_fields, scale_intensity
from .pipeline import align, describe_derivatives, preprocess_subject, unscaled_images
from .qc import edge_agreement
from .registration import Registration, brain_mask, register_rigid
from .slices import SliceStack, load_stack, plane_to_volume, save_stack, select_slices, slice_stack, write_volume

__all__ = ["Registration", "SliceStack", "align", "brain_mask", "correct_bias", "describe_derivatives",
           "edge_agreement", "estimate_bias", "fit_log_fields", "load_stack", "plane_to_volume", "preprocess_subject",
           "register_rigid", "save_stack", "scale_intensity", "select_slices", "slice_stack", "unscaled_images",
           "write_volume"]
