"""The order of mini-batches, and what training remembers between its steps, against torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from contracts.release import network, samples
from torch import nn

from riskaudit.release import make_release, with_batch_statistics
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.training import LocalTraining


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        (LocalTraining(1, 2, 0.1), [[0, 1], [2, 3], [4]]),
        (LocalTraining(2, 3, 0.1), [[0, 1, 2], [3, 4], [0, 1, 2], [3, 4]]),
        (LocalTraining(2, None, 0.1), [[0, 1, 2, 3, 4]] * 2),
        (LocalTraining(1, 9, 0.1), [[0, 1, 2, 3, 4]]),
    ],
    ids=str,
)
def test_mini_batches_follow_the_data(training: LocalTraining, steps: list[list[int]]) -> None:
    assert training.mini_batches(5) == steps


@pytest.mark.parametrize(
    ("batch", "num_samples", "words"),
    [
        (400, 8, "names mini-batches of 400, and a client has 8 samples here: each mini-batch is all that it has"),
        (3, 4, "mini-batches of 3 don't divide the 4 samples of a client: the last of every epoch holds 1, "),
        (4, 8, None),
        (8, 8, None),
        (None, 8, None),
    ],
)
def test_mini_batches_of_other_sizes_than_named_are_told(
    batch: int | None, num_samples: int, words: str | None
) -> None:
    notes = LocalTraining(1, batch, 0.1).size_notes(num_samples)
    assert len(notes) == (words is not None)
    assert all(str(words) in note for note in notes)


def test_shuffling_changes_every_epoch_and_depends_on_its_seed_alone() -> None:
    first = LocalTraining(3, 4, 0.1, shuffle=7).mini_batches(20)
    assert first == LocalTraining(3, 4, 0.5, shuffle=7).mini_batches(20)
    assert first != LocalTraining(3, 4, 0.1, shuffle=8).mini_batches(20)
    epochs = [list(chain.from_iterable(first[begin : begin + 5])) for begin in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    # Another process, and another version of Python, draws the same.
    assert LocalTraining(1, 2, 0.1, shuffle=0).mini_batches(6) == [[2, 3], [1, 0], [5, 4]]


OPTIMIZERS = {
    "lr=0.2": lambda weights: torch.optim.SGD(weights, 0.2),
    "lr=0.2:momentum=0.9:weight_decay=0.1": lambda weights: torch.optim.SGD(weights, 0.2, 0.9, weight_decay=0.1),
    "lr=0.01:optimizer=adam:weight_decay=0.1": lambda weights: torch.optim.Adam(weights, 0.01, weight_decay=0.1),
}


def normalised() -> nn.Module:
    """With batch norm, to which one sample alone gives four values per channel."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(*layers).double().train()


@pytest.mark.parametrize("shuffle", ["", ":shuffle=3"])
@pytest.mark.parametrize("text", OPTIMIZERS)
@pytest.mark.parametrize("make", [network, normalised])
def test_difference_is_that_of_torchs_optimizers(text: str, shuffle: str, make: Callable[[], nn.Module]) -> None:
    description = f"local:epochs=3:batch=2:{text}{shuffle}"
    batch, model = samples(5), make()
    release = make_release(with_batch_statistics(make().eval()), F.cross_entropy, description)
    (sent,) = release.mean(batch.in_uploads(release.uploads(5)))
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    optimizer = OPTIMIZERS[text](model.parameters())
    training = ReleaseSpec.parse(description).training
    assert training is not None
    for positions in training.mini_batches(5):
        optimizer.zero_grad()
        F.cross_entropy(model(batch.inputs[positions]), batch.targets[positions]).backward()
        optimizer.step()
    after = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.testing.assert_close(sent.detach(), before - after, rtol=1e-10, atol=1e-13)


def test_frozen_parameters_are_not_sent() -> None:
    model = network()
    model[1].requires_grad_(False)
    release = make_release(model, F.cross_entropy, "local:epochs=1:batch=2:lr=0.1")
    assert release.num_entries == sum(value.numel() for value in model[3].parameters())
