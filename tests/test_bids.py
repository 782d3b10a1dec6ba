"""Faults of a cohort are found, named with subject and file, and told together (more in test_bad_inputs.py)."""

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mslib.cohort import Cohort, Subject
from mslib.cohort.checks import ImageFault, check_image, check_mask
from mslib.cohort.survey import survey
from mslib.prep.images import affine_of, as_image
from mslib.study import StudyError

GROUPS = ["control", "RRMS"]
SEQUENCES = ("T1w", "T2w", "FLAIR")
PEOPLE = {"sub-001": "control", "sub-002": "control", "sub-003": "RRMS", "sub-004": "RRMS"}
GRID = np.array([[-1.0, 0, 0, 4], [0, 1, 0, -4], [0, 0, 2, -8], [0, 0, 0, 1]])
T1 = "sub-001/anat/sub-001_T1w.nii.gz"


def image(shape=(8, 8, 8), dtype=np.float32, qcode=1, scode=1, affine=GRID, data=None):
    data = np.random.default_rng(1).integers(0, 100, shape).astype(dtype) if data is None else data
    made = nib.Nifti1Image(data, affine)
    made.set_qform(affine if qcode else None, qcode)
    made.set_sform(affine if scode else None, scode)
    return made


def write_table(root, people, columns=("participant_id", "group")):
    rows = ["\t".join(columns), *("\t".join(row) for row in people)]
    (root / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_cohort(root, people):
    for label in people:
        (root / label / "anat").mkdir(parents=True)
        for sequence in SEQUENCES:
            nib.save(image(), root / label / "anat" / f"{label}_{sequence}.nii.gz")
    write_table(root, people.items())
    return root


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort") / "bids", PEOPLE)


@pytest.fixture
def root(healthy, tmp_path):
    return Path(shutil.copytree(healthy, tmp_path / "bids"))


def read(root, **options):
    return Cohort.from_bids(root, **{"groups": GROUPS, "min_per_group": 2, **options})


def lines(root, **options):
    with pytest.raises(StudyError) as error:
        read(root, **options)
    return str(error.value).split("\n")


def expect(root, line, **options):
    """The fault is the only line; skipping leaves the other three subjects."""
    assert lines(root, **options) == [line]
    left = read(root, **{**options, "on_fault": "skip", "min_per_group": 1})
    assert [str(fault) for fault in left.faults] == [line]
    assert [subject.id for subject in left] == ["002", "003", "004"]


def test_healthy_cohort(root):
    cohort = read(root)
    assert len(cohort) == 4 and cohort.faults == []
    first = next(iter(cohort))
    assert first == Subject("001", "control", {s: root / f"sub-001/anat/sub-001_{s}.nii.gz" for s in SEQUENCES})
    assert list(first.images) == list(SEQUENCES) and first.cohort == "study"


def test_optional_columns_and_masks(root):
    write_table(root, [("sub-001", "control", "31.5", "F", "n/a", "study"), ("sub-002", "control", "89+", "M", "0", ""),
                       ("sub-003", "RRMS", "n/a", "", "3.5", "independent"), ("sub-004", "RRMS", "40", "F", "", "n/a")],
                ("participant_id", "group", "age", "sex", "edss", "cohort"))
    mask = (np.arange(512).reshape(8, 8, 8) % 2).astype(np.uint8)
    for kind, name in (("brainmask", "desc-brain_mask"), ("truth", "label-lesion_mask")):
        folder = root / "derivatives" / kind / "sub-003" / "anat"
        folder.mkdir(parents=True)
        nib.save(image(data=mask if kind == "brainmask" else 0 * mask), folder / f"sub-003_space-T1w_{name}.nii.gz")
    one, two, three, four = read(root, min_per_group=1)
    assert (one.age, one.sex, one.edss, one.cohort) == (31.5, "F", None, "study")
    assert (two.age, two.edss, two.cohort) == (89, 0, "study")
    assert (three.age, three.sex, three.edss, three.cohort) == (None, None, 3.5, "independent")
    assert three.brain_mask.name == "sub-003_space-T1w_desc-brain_mask.nii.gz" and three.brain_mask.is_file()
    assert three.lesion_mask.name == "sub-003_space-T1w_label-lesion_mask.nii.gz" and four.brain_mask is None


def test_one_session_and_one_run_are_chosen(root):
    """Numbers may be padded; who lacks the session, or has two images with the same entities, is a fault."""
    for label in PEOPLE:
        shutil.copytree(root / label / "anat", root / label / "ses-02" / "anat")
        (root / label / "anat").rename(root / label / "anat.old")
        (root / label / "ses-01").mkdir()
        (root / label / "anat.old").rename(root / label / "ses-01" / "anat")
        for path in root.glob(f"{label}/ses-*/anat/*"):
            path.rename(path.with_name(path.name.replace(label, f"{label}_{path.parts[-3]}")))
    place = root / "sub-001/ses-02/anat"
    (place / "sub-001_ses-02_T1w.nii.gz").rename(place / "sub-001_ses-02_run-01_T1w.nii.gz")
    shutil.copy(place / "sub-001_ses-02_run-01_T1w.nii.gz", place / "sub-001_ses-02_run-02_T1w.nii.gz")
    first = next(iter(read(root, session="2", entities={"run": "2"})))
    assert [path.name for path in first.images.values()] == [
        f"sub-001_ses-02_{name}.nii.gz" for name in ("run-02_T1w", "T2w", "FLAIR")]
    assert lines(root, session="02") == [
        "sub-001: sub-001/ses-02/anat: has 2 T1w images (sub-001_ses-02_run-01_T1w.nii.gz, "
        "sub-001_ses-02_run-02_T1w.nii.gz); allowed: exactly one sub-001_ses-02_T1w.nii[.gz], or entities of one as "
        "cohort.entities"]
    for label in ("sub-001", "sub-003"):  # a mask that does not say of which session it is; 3 has one session alone
        mask = root / f"derivatives/truth/{label}/anat/{label}_space-T1w_label-lesion_mask.nii.gz"
        mask.parent.mkdir(parents=True)
        nib.save(image(data=np.ones((8, 8, 8), np.uint8)), mask)
    shutil.rmtree(root / "sub-003" / "ses-01")
    chosen = read(root, session="2", entities={"run": "2"})
    assert [one.lesion_mask is not None for one in chosen] == [False, False, True, False]
    (root / "sub-003" / "ses-02").rename(root / "sub-003" / "ses-01")
    expected = "sub-003: sub-003: has images in sessions ses-01; allowed: images in session '2'"
    assert lines(root, session="2", entities={"run": "2"}) == [expected]


def test_values_of_the_table_stand_for_classes(root):
    """Whoever has another value, or none, is left out with folder, faults and all."""
    write_table(root, [("sub-001", "0", "30"), ("sub-002", "RR-MS", "31"), ("sub-003", "CIS (first visit)", "old"),
                       ("sub-004", "n/a", "40")], ("participant_id", "dx", "age"))
    (root / "sub-003/anat/sub-003_T1w.nii.gz").unlink()
    cohort = read(root, groups={"control": ["0"], "RRMS": ["1", "RR-MS"]}, group_column="dx", min_per_group=1)
    assert [(one.id, one.group) for one in cohort] == [("001", "control"), ("002", "RRMS")] and cohort.faults == []
    assert cohort.left_out == ["left out: 1 subject with dx 'CIS (first visit)', which is of no class",
                               "left out: 1 subject with dx 'n/a', which is of no class"]
    assert lines(root, groups={"control": ["HC"], "RRMS": ["RR-MS"]}, group_column="dx", min_per_group=1) == [
        "group: participants.tsv: group 'control' has 0 usable subjects; allowed: at least 1, for the split"]


def test_one_volume_may_be_four_dimensional(root):
    nib.save(image(shape=(8, 8, 8, 1)), root / T1)
    folder = root / "derivatives/brainmask/sub-001/anat"
    folder.mkdir(parents=True)
    nib.save(image(data=np.ones((8, 8, 8, 1), np.uint8)), folder / "sub-001_space-T1w_desc-brain_mask.nii.gz")
    assert next(iter(read(root))).brain_mask and as_image(root / T1).GetSize() == (8, 8, 8)


def test_valid_headers(root):
    for dtype in (np.uint8, np.int16, ">i2", np.float64):
        nib.save(image(dtype=dtype), root / T1)
        assert len(read(root)) == 4
    header(pixdim=[0, 1, 1, 2, 1, 1, 1, 1], sform_code=0)(root / T1)  # a first number that stands for 1
    assert len(read(root)) == 4


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 1), (2, 1), (1, 2), (4, 4)])
@pytest.mark.parametrize("skew", [0, 0.001])
def test_the_grid_is_the_one_that_simpleitk_reads(tmp_path, codes, skew):
    """Of a qform and an sform half a millimetre apart, the sform perhaps skewed."""
    nib.save(image(), path := tmp_path / "a.nii.gz")
    header(qform_code=codes[0], sform_code=codes[1], qoffset_x=GRID[0, 3] + 0.5, srow_x=[-1, skew, 0, GRID[0, 3]])(path)
    if skew and not codes[0]:
        with pytest.raises(ImageFault, match="skewed"):
            check_image(path)
    else:
        np.testing.assert_allclose(check_image(path)[1], affine_of(as_image(path)), atol=1e-3)


def test_nifti2_plain_and_other_columns(root):
    (root / T1).unlink()
    nib.save(nib.Nifti2Image(image().get_fdata(dtype=np.float32), GRID), root / T1.removesuffix(".gz"))
    write_table(root, PEOPLE.items(), ("participant_id", "diagnosis"))
    (root / "sub-001/anat/._sub-001_T1w.nii.gz").write_bytes(b"left by a file manager")
    (root / "participants.tsv").write_bytes(b"\xef\xbb\xbf" + (root / "participants.tsv").read_bytes())
    assert len(read(root, group_column="diagnosis", groups=None)) == 4


def renamed_session(root):
    shutil.copytree(root / "sub-001/anat", root / "sub-001/ses-02/anat")
    (root / "sub-001/ses-01").mkdir()
    (root / "sub-001/anat").rename(root / "sub-001/ses-01/anat")


SESSION = "allowed: one session, or the label of one as cohort.session"


@pytest.mark.parametrize(("change", "line"), [
    (lambda root: shutil.copytree(root / "sub-001/anat", root / "sub-001/ses-02/anat"),
     f"sub-001: has images in 2 sessions (none, ses-02); {SESSION}"),
    (renamed_session, f"sub-001: has images in 2 sessions (ses-01, ses-02); {SESSION}"),
    (lambda root: ((root / T1).unlink(), (root / T1).mkdir()), f"{T1}: is a folder; allowed: a NIfTI file"),
    (lambda root: (root / T1).rename(root / T1.replace("_T1w", "_acq-\udcff_T1w")),
     "sub-001/anat/sub-001_acq-\\udcff_T1w.nii.gz: has a name that is not UTF-8; allowed: letters, digits, - and _")])
def test_faults_of_one_subject(root, change, line):
    change(root)
    expect(root, f"sub-001: {line}")


def test_folder_and_table_disagree(root):
    write_table(root, list(PEOPLE.items())[1:])
    shutil.rmtree(root / "sub-004")
    assert lines(root, min_per_group=1) == [
        "sub-001: sub-001: has a folder but no row in participants.tsv; allowed: one row per folder",
        "sub-004: participants.tsv: has a row but no folder; allowed: one folder per row"]


@pytest.mark.parametrize(("method", "place", "line"), [
    ("read_bytes", T1, f"{T1}: cannot be read (Permission denied); allowed: a readable NIfTI file"),
    ("iterdir", "sub-001/anat", "sub-001: cannot be read (Permission denied); allowed: a readable folder"),
    ("exists", "derivatives/brainmask/sub-001",
     "derivatives/brainmask: cannot be read (Permission denied); allowed: a readable folder")])
def test_permission_denied(root, monkeypatch, method, place, line):
    original = getattr(Path, method)

    def locked(path):
        if path.is_relative_to(root / place):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, method, locked)
    expect(root, f"sub-001: {line}")
    found = survey(root)  # goes on with the others
    assert f"sub-001: {line}" in found.faults and len(list(found.cohort)) == len(PEOPLE) - 1


@pytest.mark.parametrize("place", [T1, "sub-001"])
def test_link_out_of_the_root(root, tmp_path, place):
    shutil.move(root / place, tmp_path / "outside")
    (root / place).symlink_to(tmp_path / "outside")
    expect(root, f"sub-001: {place}: links outside the cohort's folder; allowed: files inside it")


def test_link_to_nothing_and_link_inside(root):
    shutil.move(root / T1, root / "store.nii.gz")
    (root / T1).symlink_to(root / "store.nii.gz")
    assert len(read(root)) == 4
    (root / "store.nii.gz").unlink()
    expect(root, f"sub-001: {T1}: is a link to nothing; allowed: a file (fetch the data first)")


def test_bad_ids_in_the_table(root, monkeypatch):
    names = ["../sub-001", "sub-001/../sub-002", "sub-00\\1", ".sub-001", "sub-0 1", "sub-", "001", "sub-é1",
             "sub-001_x", "sub-..", "/etc/passwd"]
    write_table(root, [*PEOPLE.items(), *((name, "RRMS") for name in names)])
    opened = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (opened.append(path), original(path))[1])
    expected = [f"{name}: participants.tsv: is no valid participant_id; allowed: 'sub-' and ASCII letters or digits"
                for name in names]
    assert lines(root) == expected
    assert [str(fault) for fault in read(root, on_fault="skip").faults] == expected
    assert len(opened) == 24 and not any(".." in path.parts or set(names) & set(path.parts) for path in opened)


def test_a_mask_may_be_scaled_to_whole_numbers(tmp_path):
    data = 255 * (np.arange(512).reshape(8, 8, 8) % 2).astype(np.uint8)
    nib.save(image(data=data), path := tmp_path / "a.nii.gz")
    header(scl_slope=1 / 255, scl_inter=0)(path)
    check_mask(path, (8, 8, 8), GRID, may_be_empty=False)
    header(scl_slope=1 / 510)(path)
    with pytest.raises(ImageFault, match="between whole numbers"):
        check_mask(path, (8, 8, 8), GRID, may_be_empty=False)


def test_bad_ids_of_folders(root):
    names = ["sub-0 1", "sub-a\nb", "sub-a\\b", "sub-a_b"]
    for name in names:
        (root / name / "anat").mkdir(parents=True)
    shown = sorted(name.replace("\n", "\\n") for name in names)
    assert sorted(lines(root)) == [f"{name}: {name}: is no valid name of a folder; "
                                   "allowed: 'sub-' and ASCII letters or digits" for name in shown]


def test_values_of_the_table(root):
    write_table(root, [("sub-001", "SPMS", "old", "11", "test"), ("sub-002", "rrms", "-3", "", ""),
                       ("sub-003", "", "", "", ""), ("sub-004", "n/a", "121", "-1", "n/a")],
                ("participant_id", "group", "age", "edss", "cohort"))
    age, edss = "allowed: a number from 0 to 120, or n/a", "allowed: a number from 0 to 10, or n/a"
    no_group = "has no group in column 'group'; allowed: control, RRMS"
    expected = [f"sub-{label}: participants.tsv: {found}" for label, found in (
        ("001", "has group 'SPMS'; allowed: control, RRMS"),
        ("001", "has cohort 'test'; allowed: study or independent"),
        ("001", f"has age 'old'; {age}"), ("001", f"has edss '11'; {edss}"),
        ("002", "has group 'rrms'; allowed: control, RRMS"), ("002", f"has age '-3'; {age}"), ("003", no_group),
        ("004", no_group), ("004", f"has age '121'; {age}"), ("004", f"has edss '-1'; {edss}"))]
    assert lines(root, min_per_group=0) == expected
    skipped = read(root, on_fault="skip", min_per_group=0)
    assert [str(fault) for fault in skipped.faults] == expected and len(skipped) == 0


@pytest.mark.parametrize(("content", "line"), [
    (None, "is absent; allowed: a tab-separated table with the columns participant_id and group"),
    ("folder", "cannot be read (Is a directory); allowed: a readable tab-separated table"),
    (b"participant_id\tgroup\n", "names no usable participant; allowed: at least one"),
    (b"participant_id\tdiagnosis\nsub-001\tRRMS\n", "has no column 'group' (but participant_id, diagnosis)")])
def test_broken_table(root, content, line):
    path = root / "participants.tsv"
    path.unlink()
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    for on_fault in ("stop", "skip"):
        assert any(found.startswith(f"cohort: participants.tsv: {line}") for found in lines(root, on_fault=on_fault))


def test_root_absent(tmp_path):
    assert lines(tmp_path / "none") == [f"{tmp_path}/none: No such file or directory; allowed: a readable BIDS folder"]


def test_too_few(root):
    line = "group: participants.tsv: group 'RRMS' has {} usable subjects; allowed: at least {}, for the split"
    assert lines(root, min_per_group=3) == [line.replace("RRMS", "control").format(2, 3), line.format(2, 3)]
    (root / "sub-003/anat/sub-003_T1w.nii.gz").unlink()
    assert len(lines(root)) == 1  # one that can be repaired is not counted out
    skipped = lines(root, on_fault="skip")
    assert skipped[1:] == [line.format(1, 2)] and skipped[0].startswith("sub-003: sub-003/anat: has no T1w image")
    assert lines(root, groups=["control", "RRMS", "SPMS"], min_per_group=1)[-1] == line.replace(
        "RRMS", "SPMS").format(0, 1)


def test_independent_cohort_does_not_fill_a_group(root):
    people = [(label, group, "independent" if group == "RRMS" else "study") for label, group in PEOPLE.items()]
    write_table(root, people, ("participant_id", "group", "cohort"))
    assert lines(root, min_per_group=1) == ["group: participants.tsv: group 'RRMS' has 0 usable subjects; "
                                            "allowed: at least 1, for the split"]


def truncated_gzip(path):
    path.write_bytes(path.read_bytes()[:-200])


def flipped_byte(path):
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # the checksum at the end
    path.write_bytes(content)


def save(**options):
    return lambda path: nib.save(image(**options), path)


def voxel(value):
    data = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    data[3, 4, 5] = value
    return save(data=data)


def header(**fields):
    """Overwrite header fields as they stand in the file."""
    def change(path):
        raw = bytearray(gzip.decompress(path.read_bytes()))
        changed = nib.Nifti1Header(bytes(raw[:348]), check=False)
        for name, value in fields.items():
            changed[name] = value
        raw[:348] = changed.binaryblock
        path.write_bytes(gzip.compress(bytes(raw)))
    return change


def shifted(mm):
    matrix = GRID.copy()
    matrix[0, 3] += mm
    return matrix


def skewed(path):
    matrix = GRID.copy()
    matrix[0, 1] = 0.2
    nib.save(image(affine=matrix, qcode=0), path)
    header(pixdim=[1, 1, np.hypot(1, 0.2), 2, 1, 1, 1, 1])(path)


#: What is done to an image; test_bad_inputs.py compares what is told of each.
IMAGE_FAULTS = {
    "gzip file cut": truncated_gzip,
    "a bit flipped in a gzip file": flipped_byte,
    "voxels cut": lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-100])),
    "HTML page named as image": lambda path: path.write_bytes(gzip.compress(b"<html>no such page</html>" * 40)),
    "empty file": lambda path: path.write_bytes(b""),
    "gzip file of nothing": lambda path: path.write_bytes(gzip.compress(b"")),
    "plain file named .nii.gz": lambda path: path.write_bytes(gzip.decompress(path.read_bytes())),
    "4-D, two volumes": save(shape=(8, 8, 8, 2)),
    "two slices": save(shape=(8, 8, 2)),
    "four voxels along an axis": save(shape=(4, 8, 8)),
    "2-D": save(shape=(8, 8)),
    "complex numbers": save(dtype=np.complex64),
    "unknown data type": header(datatype=99),
    "NaN": voxel(np.nan),
    "infinite value": voxel(-np.inf),
    "infinite scaling factor": header(scl_slope=np.inf),
    "one value only": save(data=np.full((8, 8, 8), 7, np.int16)),
    "values of 1e300": save(data=np.linspace(0, 1e300, 512).reshape(8, 8, 8)),
    "scaling factor of 1e30": header(scl_slope=1e30),
    "all values negative": save(data=-1 - np.arange(512, dtype=np.float32).reshape(8, 8, 8)),
    "no qform, no sform": save(qcode=0, scode=0),
    "sform with a row of zeros": header(srow_x=0, qform_code=0),
    "singular sform": header(srow_x=[0, 1, 0, 0], srow_y=[0, 1, 0, 0], srow_z=[1, 0, 2, 0]),
    "NaN in the sform": header(srow_y=np.nan),
    "impossible quaternion": header(quatern_b=0.9, quatern_c=0.9),
    "voxel size 0": header(pixdim=[1, 1, 1, 0, 1, 1, 1, 1]),
    "sizes of sform and pixdim differ": header(pixdim=[1, 1, 1, 3, 1, 1, 1, 1], qform_code=0),
    "qform and sform 5 mm apart": header(qoffset_x=GRID[0, 3] + 5),
    "sform flipped left to right": header(srow_x=-GRID[0]),
    "skewed sform": skewed,
    "sizes in micrometres": header(xyzt_units=3),
    "wrong magic": header(magic=b"n+3"),
    "voxels inside the header": header(vox_offset=10),
    "voxels nowhere": header(vox_offset=np.nan),
    "voxels at infinity": header(vox_offset=np.inf)}


def write_faulty_images(root):
    """One person for each fault, and a healthy one."""
    people = {f"sub-{number:03d}": "RRMS" for number in range(len(IMAGE_FAULTS) + 1)}
    write_cohort(root, people)
    for label, break_it in zip(people, IMAGE_FAULTS.values()):
        break_it(root / label / "anat" / f"{label}_T1w.nii.gz")


@pytest.mark.parametrize(("made", "found"), [
    (image(data=np.zeros((8, 8, 8), np.uint8)), "has values from 0 to 0; allowed: 0 outside and above 0 inside"),
    (image(shape=(8, 8, 9)),
     "has another grid than the T1w image (shape (8, 8, 9)); allowed: its grid, shape (8, 8, 8)"),
    (image(affine=shifted(2)), "has another grid than the T1w image (shape (8, 8, 8))")])
def test_mask_faults(root, made, found):
    place = "derivatives/brainmask/sub-001/anat/sub-001_space-T1w_desc-brain_mask.nii.gz"
    (root / place).parent.mkdir(parents=True)
    nib.save(made, root / place)
    told = lines(root)
    assert len(told) == 1 and told[0].startswith(f"sub-001: {place}: {found}")
    expect(root, told[0])
