"""--classes, --scale, --split and priors without labels on the command line: every advice leads to an audit."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from scan_cases import FORMATS, TEXT_FILES, save_arrays, save_images, save_mlp

from riskaudit.priors import load_prior

TEN = "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
ALL = {"limit": None}


@pytest.fixture
def client(tmp_path):
    """A client's folder with two of ten classes."""
    return save_images(tmp_path / "client", {"cat": ["1.png", "2.png"], "dog": ["3.png"]})


@pytest.fixture
def model(tmp_path):
    return save_mlp(tmp_path / "m.pt", (16, 8, 10))


def test_a_client_with_two_of_ten_classes(scan, tmp_path, client, model) -> None:
    refused = scan(checkpoint=model, data=client, **ALL)
    assert refused.code == 2
    assert re.search("2 classes, .*model has 10", refused.err)
    (tmp_path / "names.txt").write_text(TEN.replace(",", "\n"))
    for classes in (TEN, str(tmp_path / "names.txt")):
        outcome = scan("--classes", classes, checkpoint=model, data=client, **ALL)
        assert outcome.code == 0, outcome.err
        assert [row.target for row in outcome.result.samples] == [3, 3, 5]
    plain = scan("--classes", TEN, "--plain-ids", checkpoint=model, data=client, **ALL)
    assert plain.result.classes[0].name == "cat"
    assert TEN in plain.result.command
    for place, wanted in (("cat", "3"), ("dog", "5")):
        (client / place).rename(client / wanted)
    numbers = scan(checkpoint=model, data=client, **ALL)
    assert [row.loss for row in numbers.result.samples] == [row.loss for row in plain.result.samples]


def test_names_of_class_folders_are_told_nowhere(scan, tmp_path) -> None:
    people = ("george-bush", "hugo-chavez")
    data = save_images(tmp_path / "lfw", {name: ["1.png", "2.png"] for name in people})
    model = save_mlp(tmp_path / "m.pt", (16, 8, 2))
    for options in ((), ("--classes", ",".join(people))):
        outcome = scan(*options, checkpoint=model, data=data, limit=None, formats=FORMATS)
        assert outcome.code == 0, outcome.err
        told = outcome.text + outcome.out + outcome.err
        assert not any(word in told for word in ("george", "bush", "hugo", "chavez"))
        assert all(b"george" not in (outcome.folder / name).read_bytes() for name in ("audit.pdf",))
        hidden = [row.name for row in outcome.result.classes]
        assert all(re.fullmatch("class-[0-9a-f]{12}", name) for name in hidden)
        # Findings for machines name no classes.
        with_classes = (name for name in TEXT_FILES if name != "audit.sarif")
        assert all(hidden[0] in (outcome.folder / name).read_text("utf-8") for name in with_classes)
    plain = scan("--plain-ids", checkpoint=model, data=data, limit=None)
    assert [row.name for row in plain.result.classes] == list(people)


def test_scale_and_the_note_without_it(scan, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4))
    data = save_arrays(tmp_path / "d.npz", images=pixels, labels=np.arange(3))
    model = save_mlp(tmp_path / "m.pt", (16, 8, 3))
    plain = scan(checkpoint=model, data=data, formats=("html", "json"), **ALL)
    assert "int64 are audited as they are" in plain.out
    assert any("`scale=255`" in warning for warning in plain.result.warnings)
    assert "int64 are audited as they are" in (plain.folder / "audit.html").read_text("utf-8")
    scaled = scan("--scale", "255", checkpoint=model, data=data, **ALL)
    assert not any("`scale" in warning for warning in scaled.result.warnings)
    assert scaled.result.data.input_range[1] <= 1
    assert "--scale 255" in scaled.result.command
    bytes_ = save_arrays(tmp_path / "b.npz", images=pixels.astype(np.uint8), labels=np.arange(3))
    assert scan(checkpoint=model, data=bytes_, **ALL).values("posterior_rmse") == scaled.values("posterior_rmse")


def test_split(scan, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    arrays = {f"{split}_{what}": values for split in ("train", "test")
              for what, values in (("images", pixels), ("labels", np.arange(3)[:, None]))}  # fmt: skip
    data = save_arrays(tmp_path / "d.npz", **arrays)
    model = save_mlp(tmp_path / "m.pt", (16, 8, 3))
    assert "--split" in scan(checkpoint=model, data=data).err
    assert scan("--split", "test", checkpoint=model, data=data).code == 0


def test_priors_from_images_without_labels(command, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    save_arrays(tmp_path / "u.npz", images=pixels)
    np.save(tmp_path / "u.npy", pixels)
    torch.save(torch.from_numpy(pixels), tmp_path / "u.pt")
    (tmp_path / "flat").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "flat" / f"{number:02}.png")
    means = []
    for name in ("u.npz", "u.npy", "u.pt", "flat"):
        out = tmp_path / f"{name}.safetensors"
        done = command("prior", "fit", str(tmp_path / name), "--out", str(out), "--channels", "1")
        assert done.code == 0, done.err
        assert load_prior(out).info().num_images == 30
        assert load_prior(out).info().class_counts in (None, {})
        means.append(load_prior(out).info().mean)
        refused = command("prior", "fit", str(tmp_path / name), "--out", str(out), "--kind", "class")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert means == pytest.approx([means[0]] * 4)


def test_a_class_prior_of_named_classes_needs_their_order(command, tmp_path) -> None:
    names = [f"{number}.png" for number in range(20)]
    data = save_images(tmp_path / "public", {"cat": names, "dog": names})
    out = tmp_path / "p.safetensors"
    words = ("prior", "fit", str(data), "--out", str(out), "--kind", "class")
    assert "--classes" in command(*words).err
    assert command(*words, "--classes", TEN).code == 0
    assert set(load_prior(out).info().class_counts) == {"3", "5"}


def test_guard_check_takes_the_same(command, tmp_path, client, model) -> None:
    policy = tmp_path / "guard.toml"
    policy.write_text(
        f'[policy]\nmax_revealed = 0.9\n[guard]\ncheckpoint = "{model}"\ndata = "{client}"\nprior_std = 0.3\n'
        'release = "gaussian:0.1"\nbatch_size = 2\n'
    )
    assert "names 2 classes" in command("guard-check", str(policy), "-q").err
    done = command("guard-check", str(policy), "--classes", TEN, "--repeats", "1", "-q", "--json", "cost.json")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "work" / "cost.json").read_text())["batch_size"] == 2
