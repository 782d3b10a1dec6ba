"""Step of the maps: every layer of a network, beside its comparators."""

import numpy as np
import pandas as pd

from mslib import analysis, explain, nets
from mslib.study import StudyError, explained_networks, progress, write_arrays, write_tables

from .study import Study


def measure_maps(study: Study, backbone: str, kind: str) -> None:
    """Maps of every layer of all trainings of a kind of network, measured beside their comparators.

    The first training is also randomised, and its silent channels are compared with those of its start weights.
    """
    config, networks, depth = study.config, explained_networks(study.config, backbone, kind), analysis.depth
    if not networks:
        raise StudyError(f"{backbone}/{kind}: is none of the networks that study {config.study} explains")
    settings, model = config.explain, study.net(backbone, kind, networks[0].seed)
    slices = study.explained_slices(networks[0], settings.slices_per_subject)
    images, layers = slices.images, depth.explained_layers(model)
    methods = list(dict.fromkeys(["gradcam", "layercam", *settings.methods, *explain.CAM_VARIANTS]))
    lobes = None if kind == "cause" else _lobes(study, slices.table)
    for network in progress(networks, desc=f"{backbone} {kind}: maps and measures", unit="network"):
        folder = study.folder / "maps" / str(network)
        if network.seed != networks[0].seed:
            model.set_weights(study.net(*network).get_weights())  # one network, traced once
        found = explain.explain_layers(model, images, slices.table["target"], layers, methods, 8)
        right = slices.table.assign(correct=found.logits.argmax(1) == slices.table["target"])
        own = slices._replace(table=right)
        tables = [depth.measure_layers(found, own, config.sequences.index("FLAIR"), lobes)]
        if network.seed == 1:
            similarity, untrained = depth.randomise_layers(model, found, own, settings.randomisation_draws, config.seed)
            tables.append(untrained)
            some = nets.evenly(np.arange(len(images)), 24)
            start = depth.channel_peaks(study.started(network), images[some], layers)
            dead = depth.dead_channels({layer: peaks[some] for layer, peaks in found.peaks.items()}, start)
            write_tables(folder, 5, dead=dead, randomisation=similarity)
            _cam_volumes(study, network, model, folder / "volumes")
        maps = {f"{method}|{layer}": (raw / max(raw.max(), 1e-30)).astype(np.float16)  # of ranks alone use is made
                for method, of_layer in found.cams.items() if method in ("gradcam", "layercam")
                for layer, raw in of_layer.items()}
        write_arrays(folder / "cams.npz", brain=slices.brain, subject=right["subject"].to_numpy(str),
                     slice=right["slice"].to_numpy(), **maps)
        write_tables(folder, 5, measures=pd.concat(tables))


def _lobes(study, table):
    """Lobe of every brain pixel of slices, one subject after the other as in their table."""
    import nibabel as nib
    labels = []
    for subject, part in table.groupby("subject", sort=False):
        stack = study.stack(subject)
        mask = nib.load(study.derivative(subject, "space-T1w_desc-brain_mask.nii.gz"))
        top = analysis.lobes.brain_top(mask)
        labels.append(analysis.lobes.lobe_labels(stack.brain, stack.affine, top, part["slice"].to_numpy()))
    return np.concatenate(labels)


def _cam_volumes(study, network, model, folder):
    """Grad-CAM and LayerCAM of every slice of some patients in T1w space, for their own class: one volume per layer."""
    folder.mkdir(parents=True, exist_ok=True)
    for subject in study.shown_as_volumes() if network.kind == "honest" else ():
        stack = study.stack(subject)
        images, targets = study.images(stack), np.full(len(stack.images), study.target(subject))
        found = explain.explain_layers(model, images, targets, analysis.depth.explained_layers(model),
                                       ("gradcam", "layercam"), 8)
        for method, cams in found.cams.items():
            maps = {layer: explain.upsample_maps(cam, images.shape[1:3]) for layer, cam in cams.items()}
            study.write_volume(folder, subject, method, network, maps, stack, "Layers", {
                "Description": f"{method}, raw values, not normalised; one map for all sequences",
                "HeightMillimetres": stack.z_mm.round(2).tolist(),
                "PredictedClass": [study.config.groups[k] for k in found.logits.argmax(1)],
                "Cells": [cam.shape[1:] for cam in cams.values()]}, np.int16)
