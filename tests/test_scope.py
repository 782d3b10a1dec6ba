"""How far images lie from what networks were trained on: features of constructed images, ranges, wrong images found."""

import numpy as np
import pandas as pd
import pytest

from mslib.cohort import draw_participants, template, write_template
from mslib.nets.scope import image_features, out_of_scope, scope_of
from mslib.nets.simulated import pretraining_slices

SEQUENCES = ("T1w", "T2w", "FLAIR")


def test_features_of_constructed_images():
    rng, (y, x) = np.random.default_rng(1), np.mgrid[:64, :64] - 31.5
    brain = y**2 + x**2 < 24**2
    half = rng.uniform(0.2, 0.8, (3, 64, 32))
    t1w = np.concatenate([half, half[:, :, ::-1]], 2)  # left and right alike
    images = np.stack([t1w, 1 - t1w, np.full_like(t1w, 0.5)], -1) * brain[..., None]
    images[..., 2][brain & (np.arange(64) < 20) & np.ones((3, 1, 1), bool)] = 0.9  # one side of FLAIR only
    found = image_features(images, SEQUENCES, 2.0)
    assert found["brain area, cm2"] == brain.sum() * 4 / 100
    assert found["T1w with T2w"] == pytest.approx(-1) and found["T1w asymmetry"] == pytest.approx(0, abs=1e-6)
    assert found["FLAIR asymmetry"] > 0.2 and found["FLAIR noise"] == 0 < found["T1w noise"]
    values = t1w[:, brain]
    assert found["T1w median"] == pytest.approx(np.median(values), abs=1e-6)
    assert found["T1w spread"] == pytest.approx(np.subtract(*np.percentile(values, (75, 25))), abs=1e-6)


def test_ranges_and_what_lies_outside_them():
    scope = scope_of(pd.DataFrame({"a": np.arange(101.0), "b": np.linspace(-1, 1, 101)}))
    assert scope["a"] == [1 - 49, 99 + 49] and scope["b"] == pytest.approx([-1.96, 1.96])
    assert out_of_scope({"a": 100, "b": 0}, scope) == []
    first, second = out_of_scope({"a": 160, "b": -9}, scope)
    assert first == "b -9 (networks know -2 to 2)" and second.startswith("a 1.6e+02 (networks know -48 to ")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Slices of ten people as pre-training has them, and of two as a study has them, at 3 mm."""
    path = tmp_path_factory.mktemp("scope") / "template.npz"
    write_template(path, 3.0)
    grid = {"mm": 3.0, "size": (64, 56), "n_slices": 135, "percentiles": (0.5, 99.8), "sequences": SEQUENCES,
            "template": template(3.0, path)}
    drawn = draw_participants({"control": 4, "RRMS": 4, "SPMS": 4}, 5)
    return [pretraining_slices(one, 9, 3.0 if k < 10 else 1.0, **grid)["images"] for k, one in enumerate(drawn)]


def test_people_lie_within_and_wrong_images_outside(people):
    scope = scope_of(pd.DataFrame([image_features(one, SEQUENCES, 3.0) for one in people[:10]]))
    for right in people[10:]:
        right = right.astype(float)
        swapped, noise = right[..., [0, 2, 1]], right.copy()
        noise[..., 0] = np.random.default_rng(2).uniform(0, 1, right.shape[:3]) * (right.max(-1) > 0)
        found = [out_of_scope(image_features(images, SEQUENCES, 3.0), scope)
                 for images in (right, swapped, noise, with_old_stroke(right))]
        assert found[0] == [] and found[1] and found[2][0].startswith("T1w noise")
        assert any("asymmetry" in line for line in found[3])


def with_old_stroke(images):
    """A ball of fluid, 5 cm wide, in one half of the brain."""
    brain = images.max(-1) > 0
    ball = np.square([(place - place[brain].mean()) * mm - shift for place, mm, shift in zip(
        np.indices(brain.shape), (135 / len(images), 3.0, 3.0), (0, 0, 35))]).sum(0) < 25**2
    fluid = [np.percentile(images[brain][:, m], end) for m, end in enumerate((1, 99, 1))]
    return np.where((ball & brain)[..., None], fluid, images)
