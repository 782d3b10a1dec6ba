"""From raw images to preprocessed derivatives: bias correction, co-registration, scaling, slices, QC."""

from .bias import correct_bias
from .intensity import scale_intensity
from .masking import brain_mask
from .pipeline import Aligned, align, preprocess_subject
from .qc import edge_agreement, quality_row, registration_figure
from .registration import Registration, register_rigid
from .slices import SliceStack, load_stack, plane_to_volume, save_stack, select_slices, slice_stack, write_volume

__all__ = ["Aligned", "Registration", "SliceStack", "align", "brain_mask", "correct_bias", "edge_agreement",
           "load_stack", "plane_to_volume", "preprocess_subject", "quality_row", "register_rigid",
           "registration_figure", "save_stack", "scale_intensity", "select_slices", "slice_stack", "write_volume"]
