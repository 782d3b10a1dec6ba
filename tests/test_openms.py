"""Real patients: download with checksums, conversion to BIDS, and the authors' transforms in our convention."""

import errno
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import test_bids as bids
from shared_cases import files_of
from test_bids_validator import issues

from mslib.cohort import Cohort, openms, openms_bids
from mslib.study import StudyError, read_json
from mslib.study.provenance import file_sha256

SUFFIX = "_N4_noneck_reduced_winsor_regtoFLAIR_{}regtoMNI.nii.gz"
LAS = np.array([[-1.0, 0, 0, 90], [0, 1, 0, -126], [0, 0, 1, -72], [0, 0, 0, 1]])


def checksums(root):
    return {name: file_sha256(path) for name, path in files_of(root).items()}


def save(path, data, codes=(1, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(bids.image(data=data, affine=LAS, qcode=codes[0], scode=codes[1]), path)


def affine_file(path, seed):
    rng = np.random.default_rng(seed)
    made = sitk.AffineTransform(3)
    made.SetMatrix((np.eye(3) + 0.02 * rng.standard_normal((3, 3))).ravel().tolist())
    made.SetTranslation(rng.normal(0, 3, 3).tolist())
    made.SetCenter(rng.normal(0, 30, 3).tolist())
    sitk.WriteTransform(made, str(path.with_suffix(".tfm")))
    path.with_suffix(".tfm").rename(path)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A tiny stand-in with the database's layout: 2 patients in MNI (one with a mask only), 2 raw sessions."""
    root, rng = tmp_path_factory.mktemp("db") / "open_ms_data", np.random.default_rng(0)
    (root / "cross_sectional").mkdir(parents=True)
    (root / "longitudinal").mkdir()
    (root / "cross_sectional/patient_info.csv").write_text(
        "patient_id,age,sex,ms_type,edss,criteria\n1,30,F,SP,6.5,x\n2,40,M,N/A,N/A,N/A\n")
    (root / "longitudinal/patient_info.csv").write_text(
        "patient_id,sex,days_between_studies,age,ms_type\n1,F,731,20,\n")
    inside = np.zeros((8, 8, 8), bool)
    inside[2:6, 2:6, 2:6] = True
    lesions = np.zeros((8, 8, 8), np.uint8)
    lesions[2:4, 2:4, 2:4] = lesions[5, 5, 5] = 1
    for name in ("T1", "T2", "FLAIR"):
        data = (rng.normal(100, 20, inside.shape) * inside).astype(np.float32)
        data[3, 3, 3] = -5
        save(root / "cross_sectional/MNI/patient01" / (name + SUFFIX.format("brain_N4_")), data)
    for patient in ("patient01", "patient02"):
        save(root / "cross_sectional/MNI" / patient / ("GOLD_STANDARD" + SUFFIX.format("")), lesions)
    raw = root / "longitudinal/raw/patient01"
    for study in (1, 2):
        for name in ("T1W", "T2W", "FLAIR"):
            save(raw / f"study{study}_{name}.nii.gz", rng.integers(0, 900, (8, 9, 10)).astype(np.uint16), (2, 1))
        for seed, name in enumerate(("T1W", "T2W")):
            affine_file(raw / f"study{study}_{name}_intrastudy_to_FLAIR.txt", seed)
    return root


@pytest.fixture
def names(database, monkeypatch):
    """Checksums of the stand-in, which are the registered ones."""
    found = checksums(database)
    for module in (openms, openms_bids):
        monkeypatch.setattr(module, "registry", lambda: found)
    return found


@pytest.fixture
def base(database, tmp_path, monkeypatch):
    """A copy of the database that a test may damage."""
    copy = shutil.copytree(database, tmp_path / "base")
    monkeypatch.setenv("MSLIB_DATA", str(copy))
    return Path(copy)


def test_base_address(base, tmp_path, monkeypatch):
    def address(variable):
        monkeypatch.setenv("MSLIB_DATA", str(variable))
        return openms.base_address()

    assert address("") == openms.BASE
    assert openms.BASE.startswith("https://") and openms.COMMIT in openms.BASE
    assert address("http://mirror.example/x") == address("http://mirror.example/x/") == "http://mirror.example/x/"
    assert address(base) == f"{base}/"
    base.rename(tmp_path / "open_ms_data")
    assert address(tmp_path) == f"{tmp_path}/open_ms_data/"
    with pytest.raises(StudyError, match=r"nowhere: holds no open_ms_data; allowed: an http\(s\) address, or a folder"):
        address(tmp_path / "nowhere")


def test_fetch_from_a_folder(base, names, tmp_path):
    (base / "cross_sectional/not_registered.txt").write_text("x")
    assert openms.fetch(tmp_path / "dest") == {}
    assert checksums(tmp_path / "dest") == names
    before = {name: path.stat().st_mtime_ns for name, path in files_of(tmp_path / "dest").items()}
    damaged = next(name for name in names if name.startswith("cross_sectional/MNI"))
    (tmp_path / "dest" / damaged).write_bytes(b"cut off")
    shutil.rmtree(base / "longitudinal")  # what is there and whole needs no source
    assert openms.fetch(tmp_path / "dest") == {} and checksums(tmp_path / "dest") == names
    after = {name: path.stat().st_mtime_ns for name, path in files_of(tmp_path / "dest").items()}
    assert [name for name in names if before[name] != after[name]] == [damaged]


def test_missing_and_damaged_files_are_listed_and_the_rest_goes_on(base, names, tmp_path, capsys):
    gone, bad = "longitudinal/raw/patient01/study1_T1W.nii.gz", "longitudinal/raw/patient01/study2_T2W.nii.gz"
    (base / gone).unlink()
    (base / bad).write_bytes(b"not the file")
    missing = openms.fetch(tmp_path / "dest")
    assert missing == {gone: "No such file or directory",
                       bad: "its checksum differs from the registered one, so it is not used"}
    assert capsys.readouterr().out.splitlines() == [f"{name}: could not be had: {why}" for name, why in missing.items()]
    assert set(files_of(tmp_path / "dest")) == set(names) - {gone, bad}


def test_full_disk_and_a_file_in_the_way_are_one_line(base, names, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(openms, "_copy", full)
    for code in (errno.ENOSPC, errno.EROFS):
        with pytest.raises(StudyError, match=rf"^{tmp_path}/dest/\S+: cannot be written \({os.strerror(code)}\)$"):
            openms.fetch(tmp_path / "dest")
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match=r"file: cannot be written \(File exists\)"):
        openms.fetch(tmp_path / "file")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; files named in `cut` end early, those in `stall` stop half-way."""

    cut, stall, asked = frozenset(), frozenset(), 0

    def do_GET(self):
        type(self).asked += 1
        name = self.path.lstrip("/")
        if name not in self.cut | self.stall:
            return super().do_GET()
        content = (Path(self.directory) / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:len(content) // 2])
        self.wfile.flush()
        if name in self.stall:
            time.sleep(30)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(base, monkeypatch):
    Handler.cut, Handler.stall, Handler.asked = frozenset(), frozenset(), 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(base))) as made:
        made.daemon_threads = True
        made.block_on_close = False
        threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("MSLIB_DATA", f"http://127.0.0.1:{made.server_address[1]}/")
        yield
        made.shutdown()


def test_fetch_by_http(base, server, names, tmp_path):
    listed = sorted(names)
    gone, bad, cut = listed[2], listed[6], listed[9]
    (base / gone).unlink()
    (base / bad).write_bytes(b"something else")
    Handler.cut = frozenset({cut})
    missing = openms.fetch(tmp_path / "dest")
    assert missing[gone] == "the server answers 404 File not found"
    assert missing[bad].startswith("its checksum differs") and set(missing) == {gone, bad, cut}
    assert set(files_of(tmp_path / "dest")) == set(names) - {gone, bad, cut}


def test_unreachable_server_is_not_asked_again_and_again(names, tmp_path, monkeypatch):
    monkeypatch.setenv("MSLIB_DATA", "http://127.0.0.1:9/")  # the discard port: nothing answers
    missing = openms.fetch(tmp_path / "dest")
    assert list(missing) == list(names)
    assert [why for why in missing.values()].count("the connection failed (not tried again)") == len(names) - 2


def test_killed_download_goes_on(base, server, names, tmp_path):
    stalled = list(names)[4]
    Handler.stall = frozenset({stalled})
    code = ("import sys, json; from mslib.cohort import openms; openms.registry = lambda: json.loads(sys.argv[2]); "
            "openms.fetch(sys.argv[1])")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "dest"), json.dumps(names)])
    deadline = time.monotonic() + 60
    while Handler.asked < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.kill()
    process.wait()
    done = files_of(tmp_path / "dest")
    assert stalled not in done and {n for n in done if n in names} == set(list(names)[:4])
    Handler.stall = frozenset()
    assert openms.fetch(tmp_path / "dest") == {}
    assert checksums(tmp_path / "dest") == names


@pytest.fixture(scope="module")
def converted(database, tmp_path_factory):
    root = tmp_path_factory.mktemp("converted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openms_bids, "registry", lambda: checksums(database))
        return root, openms_bids.to_bids(database, root)


def test_conversion(converted, database):
    root, done = converted
    assert done == openms_bids.Conversion(("MNI01", "L01s1", "L01s2"), ())
    cohort = Cohort.from_bids(root)
    assert cohort.faults == [] and {s.id: s.group for s in cohort} == {
        "MNI01": "SPMS", "L01s1": "unknown", "L01s2": "unknown"}
    first, second, mni = cohort
    assert (first.age, second.age, mni.age, mni.sex, mni.edss, first.edss) == (20, 22, 30, "F", 6.5, None)
    assert first.brain_mask is None and first.lesion_mask is None
    source = database / "cross_sectional/MNI/patient01"
    assert mni.images["T1w"].read_bytes() == (source / ("T1" + SUFFIX.format("brain_N4_"))).read_bytes()
    assert mni.lesion_mask.read_bytes() == (source / ("GOLD_STANDARD" + SUFFIX.format(""))).read_bytes()
    mask, t1w = nib.load(mni.brain_mask), nib.load(mni.images["T1w"])
    np.testing.assert_array_equal(mask.get_fdata() > 0, t1w.get_fdata() != 0)
    assert mask.get_data_dtype() == np.uint8 and mask.header["qform_code"] == 1 and mask.header["sform_code"] == 0
    np.testing.assert_array_equal(mask.affine, t1w.affine)
    assert t1w.get_fdata().min() < 0


def test_valid_bids_with_source_licence_and_citation(converted, database):
    root, _ = converted
    assert len([name for name in files_of(root) if not name.startswith("derivatives/")]) == 4 + 3 * 6
    for place in (root, root / "derivatives" / "truth", root / "derivatives" / "brainmask"):
        assert [one for one in issues(place) if one["severity"] == "error"] == []
    table = (root / "participants.tsv").read_text(encoding="utf-8").splitlines()
    assert table[1].split("\t") == ["sub-MNI01", "SPMS", "30", "F", "6.5", "study"]
    assert "NO healthy control" in (root / "README").read_text(encoding="utf-8")
    for name, path in files_of(root).items():
        if name.endswith(("T1w.json", "T2w.json", "FLAIR.json")) and "/anat/" in name and "xfm" not in name:
            origin = read_json(path)
            assert origin["SourceSHA256"] == file_sha256(path.with_suffix(".nii.gz"))
            assert origin["SourceSHA256"] == file_sha256(database / origin["SourceFile"])
            assert origin["SourceURL"] == openms.BASE + origin["SourceFile"]
            assert origin["License"] == "CC-BY" and "Lesjak" in origin["Citation"] and origin["Note"]


def test_conversion_repaired(converted, base, names, tmp_path):
    root = shutil.copytree(converted[0], tmp_path / "bids")
    (root / "sub-MNI01/anat/sub-MNI01_T1w.nii.gz").write_bytes(b"half")
    openms_bids.to_bids(base, root)
    assert checksums(root) == checksums(converted[0])


def test_incomplete_and_damaged_patients_are_listed(base, names, tmp_path, capsys):
    (base / "longitudinal/raw/patient01/study1_T1W.nii.gz").unlink()
    (base / "longitudinal/raw/patient01/study2_T2W_intrastudy_to_FLAIR.txt").write_text("x")
    done = openms_bids.to_bids(base, tmp_path / "bids")
    assert done.subjects == ("MNI01",)
    assert done.incomplete == (
        "sub-L01s1: longitudinal/raw/patient01/study1_T1W.nii.gz: is absent",
        "sub-L01s2: longitudinal/raw/patient01/study2_T2W_intrastudy_to_FLAIR.txt: "
        "its checksum differs from the registered one")
    assert capsys.readouterr().out.splitlines() == [
        f"{line}; {label} is left out" for line, label in zip(done.incomplete, ("sub-L01s1", "sub-L01s2"))]
    assert not (tmp_path / "bids/sub-L01s1").exists()


def test_nothing_to_convert(base, names, tmp_path):
    shutil.rmtree(base / "longitudinal/raw")
    shutil.rmtree(base / "cross_sectional/MNI/patient01")
    with pytest.raises(StudyError, match="holds no patient with T1w, T2w and FLAIR whose files are whole"):
        openms_bids.to_bids(base, tmp_path / "bids")
    (base / "cross_sectional/patient_info.csv").unlink()
    with pytest.raises(StudyError, match=r"cross_sectional/patient_info.csv: is not the table of the patients"):
        openms_bids.to_bids(base, tmp_path / "bids")


def check_transforms(root, label, t1_file, t2_file, tolerance):
    """Stored: T1w points to T2w and FLAIR points; theirs: FLAIR points to T1w and T2w points."""
    t1, t2 = (sitk.ReadTransform(str(path)) for path in (t1_file, t2_file))
    place = root / f"derivatives/truth/{label}/anat"
    to_flair, to_t2 = (sitk.ReadTransform(str(place / f"{label}_from-T1w_to-{name}_mode-points_xfm.tfm"))
                       for name in ("FLAIR", "T2w"))
    for point in np.random.default_rng(0).uniform(-110, 110, (200, 3)).tolist():
        t1_point = t1.TransformPoint(point)
        np.testing.assert_allclose(to_flair.TransformPoint(t1_point), point, atol=tolerance)
        np.testing.assert_allclose(to_t2.TransformPoint(t1_point), t2.TransformPoint(point), atol=tolerance)


def test_transforms_are_composed_right(converted, database):
    raw = database / "longitudinal/raw/patient01"
    files = [raw / f"study1_{name}_intrastudy_to_FLAIR.txt" for name in ("T1W", "T2W")]
    check_transforms(converted[0], "sub-L01s1", *files, 1e-9)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not os.environ.get("MSLIB_DATA"):
        pytest.skip("MSLIB_DATA is unset")
    root = tmp_path_factory.mktemp("real")
    missing = openms.fetch(root / "source")
    if missing:
        pytest.skip(f"{len(missing)} of the registered files are not in MSLIB_DATA")
    return root, openms_bids.to_bids(root / "source", root / "bids")


@pytest.mark.real
def test_real_patients(real):
    root, done = real
    assert done.subjects == ("MNI07", "MNI26", "L01s1", "L01s2", "L03s2")
    assert done.incomplete == ("sub-L03s1: longitudinal/raw/patient03/study1_T1W.nii.gz: is absent",)
    cohort = Cohort.from_bids(root / "bids")
    assert cohort.faults == [] and {s.id: s.group for s in cohort} == {
        "MNI07": "RRMS", "MNI26": "RRMS", "L01s1": "unknown", "L01s2": "unknown", "L03s2": "RRMS"}
    for subject in cohort:
        header = nib.load(subject.images["T1w"]).header
        codes = int(header["qform_code"]), int(header["sform_code"])
        assert codes == ((1, 0) if subject.id.startswith("MNI") else (2, 1))
    loads = {s.id: nib.load(s.lesion_mask).get_fdata().sum() / 1000 for s in cohort if s.lesion_mask}
    assert loads == pytest.approx({"MNI07": 1.4, "MNI26": 8.4}, rel=0.1)  # published for the native grid
    assert nib.load(cohort.subjects[3].brain_mask).get_fdata().sum() == 1_135_151


@pytest.mark.real
@pytest.mark.parametrize(("label", "study"), [("sub-L01s1", "patient01/study1"), ("sub-L01s2", "patient01/study2"),
                                              ("sub-L03s2", "patient03/study2")])
def test_real_transforms_equal_the_authors_chain(real, label, study):
    root, _ = real
    raw = root / "source/longitudinal/raw"
    files = [raw / f"{study}_{name}_intrastudy_to_FLAIR.txt" for name in ("T1W", "T2W")]
    check_transforms(root / "bids", label, *files, 1e-4)
