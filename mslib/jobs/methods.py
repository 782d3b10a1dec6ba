"""The report's methods in words, from the study's settings and what training has recorded, never by hand."""

from __future__ import annotations

from pathlib import Path

from mslib.measure import MIN_SUBJECTS
from mslib.study import StudyConfig

from .words import net_records, weights_sentence

#: Terms of the results, for readers who do not measure heat maps every day.
TERMS = {
    "heat map (Grad-CAM)": "Colour that says how much a place of one layer raises the net's score for a class. One map "
                           "for all sequences.",
    "AUPRC": "Area under the precision-recall curve: are hotter pixels lesion more often than cooler ones? 1 is "
             "perfect; chance is the share of the brain that is lesion.",
    "pointing game": "Share of slices whose hottest pixel of the brain lies in a lesion; chance is again the lesions' "
                     "share.",
    "heat inside lesions": "Share of all heat in the brain that lies in lesions (also called FP, feature portion, or "
                           "mass share); chance is the lesions' share.",
    "IoU": "Overlap of lesions with the hotter half of the map: shared pixels over pixels in either; chance is as many "
           "pixels laid at random.",
    "spread": "Smallest share of the brain that holds half of the heat: near 0 a point, 0.5 even heat.",
    "chance": "What a map or net that knows nothing would reach. For accuracy: the share of the largest class.",
    "interval": "Range that would cover the true value in 95 of 100 repetitions with other subjects (at a confidence "
                f"of 95 %). Not given below {MIN_SUBJECTS} subjects.",
    "attribution": "What a method says that every value of every sequence adds to the score of a class, or takes "
                   "from it.",
    "MSFI": "Share of a map inside what it should mark, each sequence weighed by how much it matters to the net; 1 is "
            "perfect, chance is about the marks' share of the brain.",
    "relevance (LRP)": "The score of a class handed down through the net until every value of the input has its part; "
                       "the share of a sequence is the sum of its parts.",
    "likeness (Spearman, SSIM)": "Rank correlation and structural similarity with the original map; 1: the same map.",
}


def _prep(config):
    prep = config.prep
    grid = f"on {prep.resample_mm:g} mm voxels" if prep.resample_mm else "on the grid of T1w"
    return (f"Images were corrected for their bias field (N4, SimpleITK; every {prep.n4_shrink}. voxel, at most "
            f"{', '.join(map(str, prep.n4_iterations))} iterations per level). T2w and FLAIR were aligned rigidly to "
            f"T1w by mutual information; every image was resampled once, {grid}. Intensities were scaled to [0, 1] "
            f"between the {prep.percentiles[0]:g}th and {prep.percentiles[1]:g}th percentile inside the brain. The "
            f"{prep.n_slices} slices with most brain were kept, {config.model.image_size[0]} x "
            f"{config.model.image_size[1]} pixels of {config.model.pixel_mm:g} mm.")


def _frozen(facts):
    blocks = facts["frozen_blocks"]
    return (f"blocks 1 to {blocks} frozen, " if blocks else "") + ("" if facts["augmented"] else "no augmentation, ")


def _head(facts):
    """How the last layer came about, where it was not trained slice by slice."""
    if facts.get("subject_head") is None:
        return ""
    return ("; then the last layer anew, by logistic regression of subjects (those of training and of pre-training, "
            "the difference of the two means taken out) on their mean pooled features")


def _nets(config, run_dir):
    told = []
    for backbone in config.model.backbones:
        for protocol, facts in net_records(config, run_dir, backbone).items():
            told.append(f"{backbone.upper()}, {protocol.replace('_', ' ')}: {facts['epochs']} epochs at most, "
                        f"{facts['slices_per_subject']} slices a subject and epoch, {facts['pixel_mm']:g} mm pixels, "
                        f"{_frozen(facts)}{facts['training_precision']}{_head(facts)}.")
    sequences = ", ".join(config.sequences)
    fused = (f"the three sequences ({sequences}) as channels" if config.model.input == "fused"
             else f"{config.model.input} alone, three times")
    share = config.training.split
    split = "" if config.cohort.source == "open_ms" else (
        f" Split: {share.train:.0%} training, {share.validation:.0%} validation, {share.test:.0%} test.")
    where = " of the study they are taken from" if config.cohort.source == "open_ms" else ""
    return (f"{' and '.join(one.upper() for one in config.model.backbones)} with global average pooling saw {fused}."
            f"{split} Training{where}: {' '.join(told) or 'no record found.'}")


def methods_text(config: StudyConfig, run_dir: str | Path) -> str:
    """Preprocessing, nets, origin of their weights, maps and statistics as this study did them.

    Returns
    -------
    str
        Paragraphs, separated by empty lines.
    """
    statistics, given, own = config.statistics, config.attribution, config.relevance
    maps = (f"Class activation maps ({', '.join(config.explain.methods)}) come from one forward and one backward pass "
            "over all layers of blocks 4 and 5; the class is the patient's own. The explained nets are those of the "
            "split of subjects, and maps are shown of subjects outside their training and validation parts.")
    maps += (f" Sixteen attribution methods explain one slice of each of up to {given.patients} patients "
             f"({given.superpixels} superpixels per sequence, {given.samples} samples, {given.permutations} "
             f"permutations, {given.steps} steps). Relevance is propagated by the rule {own.rule} for the class that a "
             f"net names, on {own.slices_per_subject} slices of every subject outside training and validation, "
             "controls too.")
    numbers = (f"Measures are means over slices with {statistics.confidence:.0%} intervals from {statistics.bootstrap} "
               "bootstrap draws of whole subjects; proportions of subjects have Wilson's interval. No interval is "
               f"given below {MIN_SUBJECTS} subjects, or where all subjects are alike. Seed {config.seed}.")
    return "\n\n".join([_prep(config), _nets(config, run_dir), weights_sentence(config, run_dir), maps, numbers])
