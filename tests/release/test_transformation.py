"""ATS: its text, its library against Pillow's operations, and the scores by which policies are chosen."""

from __future__ import annotations

import itertools
import math

import cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor

from riskaudit.errors import ReleaseError
from riskaudit.release.augmentation import PADDING, apply_entry, transform
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.model import ModelFunction
from riskaudit.release.policy_search import accuracy_score, draw_policies, privacy_score, search_policies
from riskaudit.release.transformation import LIBRARY, Transformation


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("ats:7-4-15", "ats:7-4-15:0,gradient"),
        ("ats:21-13-3+7-4-15:5,clip:1,gaussian:0.1", "ats:21-13-3+7-4-15:5,gradient,clip:1.0,gaussian:0.1"),
        (
            "ats:3,local:epochs=1:batch=2:lr=0.1,share:fc.*",
            "ats:3:0,local:epochs=1:batch=2:lr=0.1,share:fc.*",
        ),
    ],
)
def test_text_is_read_and_printed(text: str, printed: str) -> None:
    spec = ReleaseSpec.parse(text)
    assert str(spec) == printed
    assert ReleaseSpec.parse(printed) == spec
    assert spec.names[0] == "ats"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ats", r"expected ats:POLICY\[:SEED\]"),
        ("ats:7-4:1:2", r"expected ats:POLICY\[:SEED\]"),
        ("ats:7-5", "of the entries 3, 4, 7, 13, 15, 21, found '7-5'"),
        ("ats:7--4", "found '7--4'"),
        ("ats:7+", "found ''"),
        ("ats:7:x", "a whole number as SEED"),
        ("gradient,ats:7", "as the first step only"),
        ("ats:7,ats:7", "as the first step only"),
        ("ats:7,clip:1,gradient", "gradient as the first step only"),
    ],
)
def test_other_texts_are_refused(text: str, words: str) -> None:
    with pytest.raises(ReleaseError, match=words):
        ReleaseSpec.parse(text)


def pillow(image: Image.Image, number: int, direction: int) -> Image.Image:
    entry = LIBRARY[number]
    if entry.operation.startswith("translate"):
        width, height = image.size
        across, down = (entry.magnitude * direction * size for size in (width, height))
        shifts = (across, 0) if entry.operation == "translate-x" else (0, down)
        return image.transform(image.size, Image.AFFINE, (1, 0, shifts[0], 0, 1, shifts[1]), fillcolor=(0, 0, 0))
    enhancer = {"sharpness": ImageEnhance.Sharpness, "brightness": ImageEnhance.Brightness}[entry.operation]
    return enhancer(image).enhance(1 + direction * entry.magnitude)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("number", LIBRARY)
def test_entries_are_those_of_the_library(number: int, direction: int) -> None:
    """Up to rounding to 8 bits, once of the smoothed image and once of the result."""
    pixels = (cases.cifar(1).inputs[0] * 255).round().to(torch.uint8)
    expected = np.asarray(pillow(Image.fromarray(pixels.permute(1, 2, 0).numpy()), number, direction))
    found = apply_entry(pixels.double() / 255, LIBRARY[number], direction).permute(1, 2, 0).numpy() * 255
    assert np.abs(found - expected).max() <= (1.6 if LIBRARY[number].operation == "sharpness" else 1.0)
    if LIBRARY[number].operation.startswith("translate"):
        np.testing.assert_array_equal(found.round(), expected)


def test_images_are_cropped_and_flipped_before_the_policy() -> None:
    """With an entry whose effect is undone: brightness."""
    images = cases.digits(12).inputs + 0.01
    crops = {}
    for image, found in zip(images, transform(images, Transformation(((13,),))), strict=True):
        padded = F.pad(image, (PADDING,) * 4)
        for flips in (False, True):
            for top in range(2 * PADDING + 1):
                for left in range(2 * PADDING + 1):
                    crop = padded[..., top : top + 8, left : left + 8]
                    crop = crop.flip(-1) if flips else crop
                    for sign in (1, -1):
                        entry = (crop * (1 + sign * 0.5 * 5 / 9)).clamp(0, 1)
                        if torch.allclose(entry, found, atol=1e-12):
                            crops[(top, left, flips)] = sign
    assert len(crops) >= 10
    assert {flips for _, _, flips in crops} == {False, True}
    assert set(crops.values()) == {1, -1}


def test_draws_are_an_image_s_own_and_of_the_seed() -> None:
    images, policy = cases.cifar(4).inputs, Transformation(((7, 4, 15), (21, 13, 3)), 2)
    found = transform(images, policy)
    assert torch.equal(transform(images[2:3], policy, [2])[0], found[2])
    assert not torch.equal(transform(images, Transformation(policy.policies, 3)), found)
    # Of one image at many places both policies are drawn.
    repeated = transform(images[:1].expand(16, -1, -1, -1), policy)
    assert len(repeated.unique(dim=0)) > 8
    assert found.min() >= 0
    assert found.max() <= 1


def oracle_privacy(function: ModelFunction, image: Tensor, target: Tensor, noise: Tensor) -> float:
    """By plain autograd, point by point."""

    def gradients(x: Tensor) -> list[Tensor]:
        parameters = list(function.model.parameters())
        return list(torch.autograd.grad(F.cross_entropy(function.model(x[None]), target[None]), parameters))

    own, values = gradients(image), []
    for step in range(21):
        there = gradients(step / 20 * image + (1 - step / 20) * noise)
        pairs = zip(own, there, strict=True)
        values.append(float(np.mean([F.cosine_similarity(a.flatten(), b.flatten(), dim=0) for a, b in pairs])))
    assert values[-1] == pytest.approx(1)
    return sum((a + b) / 2 for a, b in itertools.pairwise(values)) / 20


def test_scores_are_those_of_the_definition() -> None:
    function, batch = ModelFunction(cases.lenet(8), F.cross_entropy), cases.digits(5)
    noise = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    expected = oracle_privacy(function, batch.inputs[0], batch.targets[0], noise)
    assert privacy_score(function, batch.inputs[0], batch.targets[0], 7) == pytest.approx(expected, rel=1e-9)
    inputs = batch.inputs.clone().requires_grad_()
    rows = torch.stack([torch.autograd.grad(function.model(x[None]).sum(), inputs)[0].sum(0) for x in inputs])
    eigenvalues = np.linalg.eigvals(np.corrcoef(rows.flatten(1).numpy())).real
    score = -sum(math.log(v + 1e-5) + 1 / (v + 1e-5) for v in eigenvalues)
    assert accuracy_score(function, batch.inputs) == pytest.approx(score, rel=1e-6)


def test_search_puts_the_safest_policy_first() -> None:
    batch, policies = cases.digits(4), draw_policies(3, length=2, seed=1)
    assert len({policy.policies for policy in policies}) == 3
    scores = search_policies(cases.lenet(8), F.cross_entropy, batch.inputs, batch.targets, policies)
    assert sorted(score.policy for score in scores) == sorted(policy.policy for policy in policies)
    assert [score.privacy for score in scores] == sorted(score.privacy for score in scores)
    assert len(draw_policies(1000, length=1)) == len(LIBRARY)
    with pytest.raises(ReleaseError, match="two images at least"):
        search_policies(cases.lenet(8), F.cross_entropy, batch.inputs[:1], batch.targets[:1], policies)
