"""Where does a net look? Class activation maps of every layer; knows Keras, nothing of MRI."""

from .cam import CAM_METHODS, activations_and_gradients, layer_cams
from .maps import blank_maps, fuse_layercam, upsample_maps
from .model import check_inputs, check_model, resolve_layers, spatial_layers, to_logits
from .randomisation import cascading_randomisation

__all__ = [
    "CAM_METHODS", "activations_and_gradients", "blank_maps", "cascading_randomisation", "check_inputs",
    "check_model", "fuse_layercam", "layer_cams", "resolve_layers", "spatial_layers", "to_logits",
    "upsample_maps"]
