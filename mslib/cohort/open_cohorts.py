"""Recipes for open cohorts (where their files lie), and their conversion to one BIDS dataset with a column ``site``."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from mslib.study import CONTROL, StudyError, progress, read_json, write_text
from mslib.study.provenance import file_sha256

from .checks import Fault, ImageFault, check_image, check_mask
from .openms_bids import Conversion
from .participants import LABEL, LABEL_RULE, TABLE, copy_image, ending, read_cells, write_description
from .survey import sidecar

GENERATOR = [{"Name": "mslib.cohort.open_cohorts"}]
COLUMNS = ("participant_id", "group", "age", "sex", "edss", "cohort", "site")
LEVELS = {CONTROL: "healthy", "MS": "multiple sclerosis, type not stated", "RRMS": "relapsing-remitting",
          "SPMS": "secondary-progressive", "PPMS": "primary-progressive"}
README = """Open cohorts in one BIDS dataset: {sources}.
Written by recipes that were tested on small look-alike data, not on the originals. sourcedata/registry_*.txt holds
path and SHA-256 of every file used (the format of pooch); masks are in derivatives/truth; age and EDSS are those of
the first session.

Where patients and controls come from different sites, a network that tells them apart may have learnt the site
(scanner, sequence, skull-stripping, defacing). mslib check measures how well the site is told without any anatomy.
"""


@dataclass(frozen=True)
class Recipe:
    """Where the files of an open cohort lie, and who its people are.

    `images` (by BIDS suffix), `masks` (by label): expressions of a path below the source, with groups ``id`` and, where
    people have several, ``session``; `example`: such a path; `table`, `people`: name of the cohort's table, and what it
    says, by id and column; `group`: of those of whom it does not say it.
    """

    site: str
    source: str
    licence: str
    group: str
    images: dict[str, str]
    masks: dict[str, str]
    example: str
    table: str | None = None
    people: Callable[[Path], dict[str, dict]] | None = None


def _msleseg_people(path: Path) -> dict[str, dict]:
    """Of ``clinical_data.csv`` (semicolons, decimal commas, types in Italian): each person's first time point."""
    types = {"SMRR": "RRMS", "SMSP": "SPMS", "SMPP": "PPMS"}
    try:
        table = pd.read_csv(path, sep=";", dtype=str, keep_default_na=False).sort_values("Timepoint", kind="stable")
        return {one["Patient"]: {
            "group": types.get(one["MS Type"], one["MS Type"]), "age": one["Age"].replace(",", "."), "sex": one["Sex"],
            "edss": one["EDSS"].replace(",", ".")} for one in table[::-1].to_dict("records")}
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(f"{path}: is not the clinical table of MSLesSeg ({error}); allowed: columns Patient, "
                         "Timepoint, Age, Sex, MS Type, EDSS between semicolons, or no such file") from error


def _leipzig_people(path: Path) -> dict[str, dict]:
    """Of ``participants.tsv``: sex, and the middle of the age's bin (``20-25``)."""
    people = {}
    for row in read_cells(path.parent).to_dict("records"):
        named = {name.split()[0].lower(): text for name, text in row.items() if name}
        years = [float(text) for text in re.findall(r"\d+", named.get("age", ""))]
        sex = named.get("gender", named.get("sex", "")).upper()[:1]
        people[row["participant_id"].removeprefix("sub-")] = {
            "age": f"{sum(years) / len(years):g}" if years else "n/a", "sex": sex if sex in ("F", "M") else "n/a"}
    return people


_MSLESEG = r"(?:train|test)/(?P<id>[^/]+)/(?:T(?P<session>\d+)/)?(?P=id)_(?:T(?P=session)_)?{}\.nii(?:\.gz)?"
_MS3SEG = r"MS_100_patient_(?:preprocessed|registered)/(?P<id>[^/]+)/(?P=id)_{}\.nii(?:\.gz)?"
_MS3SEG_MASK = r"{0}_Masks/(?P<id>[^/]+)/(?P=id)_{0}_Mask\.nii(?:\.gz)?"
_LEIPZIG = r"sub-(?P<id>[^/]+)/ses-(?P<session>01)/anat/sub-(?P=id)_ses-01_{}\.nii(?:\.gz)?"
#: Recipes by the name that the command line takes.
RECIPES = MappingProxyType({
    "msleseg": Recipe(
        "MSLesSeg", "https://doi.org/10.6084/m9.figshare.27919209", "CC BY 4.0", "MS",
        {"T1w": _MSLESEG.format("T1"), "T2w": _MSLESEG.format("T2"), "FLAIR": _MSLESEG.format("FLAIR")},
        {"lesion": _MSLESEG.format("MASK")}, "train/P1/T1/P1_T1_FLAIR.nii.gz", "clinical_data.csv",
        _msleseg_people),
    "ms3seg": Recipe(
        "MS3SEG", "https://doi.org/10.6084/m9.figshare.30393475", "CC BY 4.0", "MS",
        {"T1w": _MS3SEG.format("T1WI_reg"), "T2w": _MS3SEG.format("T2WI_reg"), "FLAIR": _MS3SEG.format("FLAIR")},
        {"lesion": _MS3SEG_MASK.format("abWMH"), "normalhyperintensity": _MS3SEG_MASK.format("nWMH"),
         "ventricle": _MS3SEG_MASK.format("Vent")}, "MS_100_patient_preprocessed/001/001_FLAIR.nii.gz"),
    "ds000221": Recipe(
        "Leipzig", "https://openneuro.org/datasets/ds000221", "CC0", CONTROL,
        {"T1w": _LEIPZIG.format("acq-mp2rage_T1w"), "T2w": _LEIPZIG.format("(?:acq-[A-Za-z0-9]+_)?T2w"),
         "FLAIR": _LEIPZIG.format("(?:acq-[A-Za-z0-9]+_)?FLAIR")}, {},
        "sub-010002/ses-01/anat/sub-010002_ses-01_acq-lowres_FLAIR.nii.gz", TABLE, _leipzig_people)})


def _people(recipe: Recipe, source: Path) -> dict[str, dict]:
    """What the uppermost table of the cohort outside derivatives says of its people, by id and column."""
    found = [path for path in source.rglob(recipe.table or "no table")
             if "derivatives" not in path.relative_to(source).parts]
    return recipe.people(min(found, key=lambda path: (len(path.parts), path))) if found else {}


def _scans(recipe: Recipe, source: Path) -> dict[tuple[str, str], dict[str, list[tuple[str, Path]]]]:
    """By id and session: files of every sequence and mask, each with its path as the recipe knows it."""
    wanted = {name: re.compile(f"(?:.*/)?(?P<file>{rule})") for name, rule in (recipe.images | recipe.masks).items()}
    scans = defaultdict(lambda: defaultdict(list))
    for path in sorted(source.rglob("*.nii*")):
        place = path.relative_to(source).as_posix()
        for name, rule in wanted.items() if "derivatives/" not in place else ():
            if match := rule.fullmatch(place):
                session = f"ses-{int(match.groupdict().get('session') or 1):02d}"
                scans[match["id"], session][name].append((match["file"], path))
    return scans


def _chosen(recipe: Recipe, source: Path, label: str, files: dict, registry: dict[str, str]
            ) -> tuple[dict[str, tuple[str, Path, str]], list[Fault]]:
    """For every sequence, and every mask that is there, one whole file with its SHA-256; and all faults of the scan."""
    faults, chosen, grids = [], {}, []
    if not LABEL.fullmatch(label):
        faults.append(Fault(label, label, "is no valid name of a subject", LABEL_RULE))
    for name in (*recipe.images, *recipe.masks):
        found = files.get(name, [])
        if len(found) > 1 or (not found and name in recipe.images):
            listed = ", ".join(place for every in ([found] if found else files.values()) for place, _ in every)
            faults.append(Fault(label, str(source), f"has {len(found) or 'no'} {name} files ({listed})",
                                f"one, as in {recipe.example}"))
        for place, path in found if len(found) == 1 and not faults else ():
            try:
                if not path.is_file():
                    raise ImageFault("is a link to nothing", "a file (fetch the data first)")
                if not path.resolve().is_relative_to(source.resolve()):
                    raise ImageFault("links outside the source", "files inside it")
                digest = file_sha256(path)
                if registry.get(place, digest) != digest:
                    raise ImageFault("has another checksum than the registered one", "the same file, or no such line "
                                     "in sourcedata/registry_*.txt")
                if name in recipe.images:
                    grids.append(check_image(path))
                else:
                    check_mask(path, *grids[0], may_be_empty=True)  # T1w is the first
                chosen[name] = place, path, digest
            except ImageFault as error:
                faults.append(Fault(label, place, *error.args))
    return chosen, faults


def _write(recipe: Recipe, label: str, session: str, chosen: dict, registry: dict[str, str], root: Path) -> None:
    """Copy the files of a scan that are not there yet, each with a sidecar."""
    anat = f"{label}/{session}/anat/{label}_{session}"
    reference = f"bids:raw:{anat}_T1w{''.join(chosen['T1w'][1].suffixes[-2:])}"
    for name, (place, path, digest) in chosen.items():
        if name in recipe.images:
            stem, facts = root / f"{anat}_{name}", sidecar(path)
        else:
            stem = root / f"derivatives/truth/{anat}_space-T1w_label-{name}_mask"
            facts = {"Type": "Lesion" if name == "lesion" else "ROI", "SpatialReference": reference}
        target = stem.with_suffix(ending(path))
        if registry.get(place) != digest or not target.is_file() or target.stat().st_size != path.stat().st_size:
            copy_image(path, stem, facts | {"SourceFile": place, "SourceSHA256": digest, "SourceURL": recipe.source,
                                            "License": recipe.licence})


def _rows(root: Path) -> dict[str, dict]:
    """Rows of an earlier conversion; StudyError where the folder holds a dataset of another origin."""
    description = root / "dataset_description.json"
    if not description.exists() and not (root / TABLE).exists():
        return {}
    if not description.exists() or read_json(description).get("GeneratedBy") != GENERATOR:
        raise StudyError(f"{root}: holds a dataset that mslib convert has not written; allowed: a new folder, or one "
                         "that it has written")
    return {row["participant_id"]: row for row in read_cells(root).to_dict("records")}


def convert(recipe: str, source: str | Path, bids_root: str | Path) -> Conversion:
    """Convert what is whole in an open cohort to BIDS, or add it to an earlier conversion; the rest is listed.

    Files are copied byte for byte; those that an earlier call has copied are left alone. Scans left out are also
    printed, a line each.

    `recipe`: one of `RECIPES`; `source`: folder with the unpacked cohort, or one above it; `bids_root`: new, or written
    by this function: each cohort becomes a `site` of the same dataset. Where its ``sourcedata/registry_<recipe>.txt``
    names a file, the file must have the checksum that stands there. StudyError: no such recipe or folder, no whole
    scan, a dataset of another origin under `bids_root`.
    """
    if recipe not in RECIPES:
        raise StudyError(f"RECIPE: must be one of {', '.join(RECIPES)} (got {recipe!r})")
    own, source, root = RECIPES[recipe], Path(source), Path(bids_root)
    if not source.is_dir():
        raise StudyError(f"{source}: is no folder; allowed: the unpacked data of {own.site} ({own.source})")
    rows, people, file = _rows(root), _people(own, source), root / "sourcedata" / f"registry_{recipe}.txt"
    try:
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        registry = dict(words[:2] for line in text.splitlines() if (words := shlex.split(line, comments=True)))
    except ValueError as error:
        raise StudyError(f"{file}: is no registry of pooch ({error}); allowed: path and SHA-256 in a line") from error
    whole, lines = {}, []
    for (name, session), files in progress(_scans(own, source).items(), desc=f"convert {recipe}", unit="scan"):
        label = f"sub-{own.site}{name}"
        chosen, faults = _chosen(own, source, label, files, registry)
        lines += [f"{fault}; {session} is left out" for fault in faults]
        if faults:
            continue
        _write(own, label, session, chosen, registry, root)
        registry |= {place: digest for place, _, digest in chosen.values()}
        write_text(file, "".join(f"{shlex.quote(place)} {digest}\n" for place, digest in sorted(registry.items())))
        known = {key: text for key, text in people.get(name, {}).items() if text}
        whole[label] = {"group": own.group, "cohort": "study", **known, "participant_id": label, "site": own.site}
    print(*(f"{line}\n" for line in lines), sep="", end="")
    if not whole:
        raise StudyError(f"{source}: holds no whole scan of {own.site}; allowed: files as {own.example}")
    table = pd.DataFrame([row for _, row in sorted((rows | whole).items())], columns=COLUMNS).fillna("n/a")
    sites = [one for one in RECIPES.values() if one.site in set(table["site"])]
    derived = {"truth": "masks by the cohorts' experts"} if (root / "derivatives" / "truth").is_dir() else {}
    write_description(
        root, "Open cohorts: " + ", ".join(one.site for one in sites), table, LEVELS,
        README.format(sources=", ".join(f"{one.site} ({one.source}, {one.licence})" for one in sites)), derived,
        License=", ".join(f"{one.licence} ({one.site})" for one in sites), GeneratedBy=GENERATOR,
        SourceDatasets=[{"URL": one.source} for one in sites])
    return Conversion(tuple(label.removeprefix("sub-") for label in whole), tuple(lines))
