"""What steps and notebooks open: a run with its subjects, slice stacks, networks and maps."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from mslib import analysis, explain, nets, prep, sleep
from mslib.study import Network, Run, StudyError, progress, read_arrays, read_json, read_table, write_arrays
from mslib.study.provenance import ROOT

if TYPE_CHECKING:
    import keras

    from mslib.analysis.attribution import Explained

#: Who is seen, and what may be concluded, for captions.
DATA = {"simulated": "Simulated patients",
        "open_ms": "Real patients; networks trained on simulated ones (transfer, no accuracy claim)",
        "bids": "Patients of the study's own cohort"}


def shipped(name: Network | str) -> Path:
    """Shipped weights of a network, or of a backbone (``vgg16_simulated``)."""
    return ROOT / "weights" / f"{name}.h5"


def write_maps(path: Path, slices: Explained, maps: dict[str, np.ndarray], row: int | None = None) -> None:
    """Write slices, and their maps or other arrays, for `read_maps`; of one `row` alone, if that is given."""
    if row is not None:
        slices, maps = slices.at([row]), {name: raw[[row]] for name, raw in maps.items()}
    known = {f"slices {name}": values for name, values in vars(slices).items() if values is not None}
    write_arrays(path, **known, **maps)


def read_maps(path: Path) -> tuple[Explained, dict[str, np.ndarray]]:
    """Slices and their maps as `write_maps` leaves them."""
    maps = read_arrays(path)
    known = {name.removeprefix("slices "): maps.pop(name) for name in list(maps) if name.startswith("slices ")}
    return analysis.attribution.Explained(**known | {"pixel_mm": float(known["pixel_mm"])}), maps


class Case(NamedTuple):
    """Slices of one subject that a network is explained on: ``slices`` are numbers, masks (n, H, W)."""

    subject: str
    group: str
    cohort: str
    slices: np.ndarray
    images: np.ndarray
    target: int
    lesions: np.ndarray
    brain: np.ndarray


class Study(Run):
    """A run with its subjects, slice stacks and networks: what notebooks and steps work with."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns and channels of what the networks see."""
        return *self.config.model.image_size, len(self.config.sequences)

    @property
    def input_channels(self) -> list[int] | None:
        """Channels of a stack that the networks see; None: all."""
        return nets.channels_of(self.config.model.input, self.config.sequences)

    @property
    def data(self) -> str:
        """Whose data it is, for captions, and whether it lies outside what shipped networks know."""
        strange = 0 if self.config.trains else (self.subjects["out_of_scope"].fillna("") != "").sum()
        return DATA[self.config.cohort.source] + (f"; {strange} of {len(self.subjects)} subjects look otherwise than "
                                                  "those that the networks were trained on" if strange else "")

    @property
    def positive_control(self) -> str:
        """Said of networks that only lesions can decide, which are simulated people's, in a study of other people."""
        return "" if self.config.cohort.source == "simulated" else " (simulated people)"

    @property
    def controls(self) -> str:
        """Whose controls carry marks, for captions."""
        return {"simulated": "simulated controls"}.get(self.config.cohort.source, "controls of the study's own cohort")

    @cached_property
    def subjects(self) -> pd.DataFrame:
        """By id: ``group, cohort, part, age, sex, edss, lesion_mask, explained, volume``."""
        return self.read("subjects").set_index("subject", drop=False)

    def target(self, subject: str) -> int:
        """Class of a subject; StudyError where the networks do not know it."""
        group, groups = self.subjects.loc[subject, "group"], self.config.groups
        if group not in groups:
            raise StudyError(f"sub-{subject}: group {group} is none of the networks' classes {groups}")
        return groups.index(group)

    def explained(self) -> list[str]:
        """Ids of the patients whom no explained network has trained or stopped on."""
        return list(self.subjects.index[self.subjects["explained"]])

    def example(self) -> str:
        """Id of the patient of the figures."""
        return self.shown_as_volumes()[0]

    def shown_as_volumes(self) -> list[str]:
        """Ids of the patients of whom maps are made as volumes, that of the figures first."""
        return list(self.subjects.query("volume > 0").sort_values("volume").index)

    def unseen(self) -> list[str]:
        """Ids of everybody outside training and validation, controls too."""
        return list(self.subjects.index[~self.subjects["part"].isin(("train", "validation"))])

    def derivative(self, subject: str, name: str) -> Path:
        """A file that preprocessing has made of a subject."""
        return self.anat(subject) / f"sub-{subject}_{name}"

    def stack(self, subject: str) -> prep.SliceStack:
        """Slice stack of a subject."""
        return prep.load_stack(self.derivative(subject, "space-T1w_desc-slices.npz"))

    def images(self, stack: prep.SliceStack, index=slice(None)) -> np.ndarray:
        """Slices of a stack as the networks take them, float32 (n, H, W, M)."""
        images = stack.images[index].astype("float32")
        return images if self.input_channels is None else images[..., self.input_channels]

    def slice_set(self, of: str) -> nets.SliceSet:
        """Slices that networks learn: of ``study`` (both cohorts, spread over each brain) or ``cause``."""
        if of == "cause":
            folder = self.folder / "nets" / "cause"
            images = np.load(folder / "images.npy", mmap_mode="r")
            return nets.SliceSet(images.reshape(-1, *images.shape[2:]), read_table(folder / "slices.csv"))
        counts = {"study": self.config.training.slices, "independent": self.config.training.independent_slices}
        images, tables = [], []
        for subject, person in progress(self.subjects.iterrows(), total=len(self.subjects), desc="load slices"):
            stack, path = self.stack(subject), self.truth_folder(subject) / f"sub-{subject}_truth.json"
            index = nets.evenly(np.arange(len(stack.images)), counts[person["cohort"]])
            images.append(stack.images[index])
            areas = read_json(path).get("areas_mm2", {}) if path.is_file() else {}  # none of a real subject
            tables.append(pd.DataFrame({
                "subject": subject, "slice": index, "group": person["group"], "target": self.target(subject),
                "part": None if person["cohort"] == "study" else "independent",
                **{f"{key}_mm2": np.interp(stack.z_mm[index], areas["z_mm"], areas[key]).round(2)
                   for key in ("lesion", "black_hole", "ventricle") if areas}}))
        return nets.SliceSet(np.concatenate(images), pd.concat(tables, ignore_index=True))

    def truth_folder(self, subject: str) -> Path:
        """Where the known truth of a subject lies, if there is any."""
        return self.bids_root / "derivatives" / "truth" / f"sub-{subject}" / "anat"

    def classes(self, kind: str) -> list[str]:
        """Classes of a kind of network, in the order of its logits."""
        return list(nets.CAUSE_CLASSES if kind == "cause" else self.config.groups)

    def template(self, mm: float) -> Path:
        """Maps of the template brain at a voxel size."""
        return self.folder / f"template_{mm:g}mm.npz"

    def trainable(self, network: Network, precision: str, weights: str | None = None) -> keras.Model:
        """A network before fine-tuning (of the study's weights or others), with batch norm where it starts at random.

        StudyError where the weights cannot be had.
        """
        import keras
        keras.utils.set_random_seed(self.config.seed + network.seed - 1)
        weights = weights or self.config.model.weights
        if weights not in ("scratch", "simulated", "imagenet"):
            weights = ROOT / weights  # a path is relative to the project
        return nets.start_network(network.backbone, self.classes(network.kind), self.shape, weights, precision,
                                  shipped(f"{network.backbone}_simulated"), self.config.model.narrow)

    def started(self, network: Network) -> keras.Model:
        """A network before fine-tuning, plain and in float32."""
        return nets.plain_network(self.trainable(network, "float32"))

    def net(self, backbone: str, kind: str = "honest", seed: int = 1) -> keras.Model:
        """A fitted network, plain and in float32 (of real patients' studies a shipped one).

        StudyError where it has not been trained, or knows other classes.
        """
        network = Network(backbone, kind, seed)
        if not self.config.trains:
            self.check_classes(network)
            model = self.started(network)
            nets.load_half(model, shipped(network), self.classes(kind))
            return model
        path = self.folder / "nets" / str(network) / "weights.weights.h5"
        if not path.is_file():
            raise StudyError(f"{path}: no fitted {backbone}; run the study that trains it first "
                             f"(snakemake --config study={self.config.study})")
        return nets.build_classifier(backbone, len(self.classes(kind)), self.shape, path,
                                     narrow=self.config.model.narrow)

    def check_classes(self, network: Network) -> None:
        """StudyError where a shipped network's classes are not those of the study, in their order."""
        known, asked = read_json(shipped(network).with_suffix(".json"))["classes"], self.classes(network.kind)
        if asked != known:
            raise StudyError(f"groups: must be {known}, in this order, where shipped networks explain (got {asked})")

    def cases(self, network: Network) -> Iterator[Case]:
        """What a network is explained on, subject by subject, for the subject's own class.

        Slices with lesions (all where no lesion mask is known): of the explained patients; of ``cause`` networks those
        of its test people.
        """
        if network.kind != "cause":
            for subject in self.explained():
                stack, person = self.stack(subject), self.subjects.loc[subject]
                lesions = stack.lesions & stack.brain
                shown = lesions.any(axis=(1, 2)) | (not person["lesion_mask"])
                if len(index := np.flatnonzero(shown)):
                    yield Case(subject, person["group"], person["cohort"], index, self.images(stack, index),
                               self.target(subject), lesions[index], stack.brain[index])
            return
        slices, masks = self.slice_set("cause"), read_arrays(self.folder / "nets" / "cause" / "masks.npz")
        for subject, rows in slices.table.query("part == 'test' and target == 1").groupby("subject"):
            index = rows.index.to_numpy()
            masked = index - len(masks["brain"])  # lesion-free slices come first
            yield Case(subject, rows["group"].iloc[0], "cause", rows["slice"].to_numpy(),
                       slices.batch(index, self.input_channels), 1, masks["lesions"][masked], masks["brain"][masked])

    def explained_slices(self, network: Network, each: int) -> analysis.depth.Slices:
        """So many slices of each of `cases`."""
        cases = progress(self.cases(network), desc=f"{network.backbone} {network.kind}: slices", unit="subject")
        return analysis.depth.gather_slices(cases, each, self.config.model.pixel_mm)

    @property
    def attribution_settings(self) -> dict:
        """Parameters of attribution methods: ``superpixels, samples, permutations, steps, seed, precision``."""
        return self.config.attribution.model_dump(include={"superpixels", "samples", "permutations", "steps"}) | {
            "seed": self.config.seed, "precision": nets.choose_precision(self.config.training.precision)}

    def shown_slices(self, model: keras.Model) -> tuple[np.ndarray, Explained, bool]:
        """The slices with most lesion (without a mask: most brain) of the patient of the figures, eight at most.

        First the fullest one that a network classifies correctly: their numbers, what is explained of them (lesions as
        features), and whether there is such a one (else the fullest).
        """
        subject = self.example()
        stack, target = self.stack(subject), self.target(subject)
        lesions = stack.lesions & stack.brain
        content = lesions if lesions.any() else stack.brain
        order = np.argsort(-content.sum(axis=(1, 2)), kind="stable")[:8]
        correct = explain.logits_of(model, [self.images(stack, order)]).argmax(1) == target
        order = np.concatenate([order[[correct.argmax()]], np.delete(order, correct.argmax())])
        features = np.repeat(lesions[order][..., None], len(self.config.sequences), -1)
        shown = analysis.attribution.Explained(
            self.images(stack, order), np.full(len(order), target), stack.brain[order], features,
            np.full(len(order), subject), self.config.model.pixel_mm)
        return order, shown, bool(correct.any())

    def map_name(self, subject: str, method: str, backbone: str, end: str = "nii.gz") -> str:
        """Name of maps of a patient in T1w space, for the patient's own class, in the direction of BIDS's BEP 041."""
        contrast = "".join(filter(str.isalnum, self.subjects.loc[subject, "group"]))
        return f"sub-{subject}_space-T1w_contrast-{contrast}_stat-{method}_desc-{backbone}_statmap.{end}"

    def write_volume(self, folder: Path, subject: str, method: str, network: Network, maps: dict[str, np.ndarray],
                     stack: prep.SliceStack, names: str, facts: dict, dtype=np.float32) -> None:
        """Write maps of all slices of a patient, for the patient's own class, by `mslib.prep.write_volume`."""
        facts = facts | {"Network": str(network), "Class": self.subjects.loc[subject, "group"]}
        prep.write_volume(folder / self.map_name(subject, method, network.backbone), maps, stack,
                          self.derivative(subject, "space-T1w_desc-preproc_T1w.nii.gz"), names, facts, dtype)

    def maps(self, place: str) -> tuple[Explained, dict[str, np.ndarray]]:
        """A slice that notebooks show and its maps by every method.

        `place`: ``attributions/<backbone>/honest`` or ``cause`` in its place, ``known_rule/<experiment>/maps``.
        """
        return read_maps(self.folder / f"{place}.npz")

    def known_rule_net(self, experiment: str) -> keras.Model:
        """A network with a known decision rule, of `mslib.nets.known_rule.experiments`."""
        own = self.config.attribution.known_rule
        shape = *(side // own.shrink for side in self.shape[:2]), self.shape[2]
        path = self.folder / "known_rule" / experiment / "weights.weights.h5"
        return nets.build_classifier("vgg16", 2, shape, path, narrow=own.narrow)

    def epochs(self) -> sleep.EpochSet:
        """Sleep: the epochs of all nights that can be used; signals stay on disk until they are asked for."""
        folder, notes = self.folder / "sleep", read_json(self.folder / "sleep" / "nights.json")
        return sleep.EpochSet(folder / "epochs", read_table(folder / "epochs" / "epochs.csv"), tuple(notes["faults"]),
                              notes["quality"])

    def stager(self, fold: int) -> keras.Model:
        """Sleep: the staging network of a fold; StudyError where it has not been trained."""
        path = self.folder / "sleep" / f"fold-{fold}" / "weights.weights.h5"
        if not path.is_file():
            raise StudyError(f"{path}: no staging network yet; run the study that trains it first")
        model = sleep.staging.build_stager(*self.epochs().shape, pool=self.config.sleep.pool)
        model.load_weights(path)
        return model

    def show(self, name: str, figure, here: str = "") -> None:
        """Save a figure to ``figures/<name>.png`` (and ``.jpg`` if a scan is in it, else ``.svg``) and display it.

        Below it stands what it shows `here`, with its numbers; a screen reader says that of the picture.
        """
        from IPython.display import Image, Markdown, display

        from mslib.show import save_figure, save_scans
        path = self.folder / "figures" / f"{name}.png"
        if any(ax.images for ax in figure.axes):
            save_scans(figure, path)
        else:
            save_figure(figure, path)
            save_figure(figure, path.with_suffix(".svg"))
        self._made[f"figures/{path.name}"] = here
        display(Image(path, alt=here or name.replace("_", " "), metadata={"figure": path.name}))
        if here:
            display(Markdown(f"**Here:** {here}"))
