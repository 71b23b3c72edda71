"""Labels read off the gradient of the last layer, for cross-entropy on logits y = W a + b.

For one sample the gradient of the logits is s = p - onehot(label): negative at the label, positive elsewhere (Zhao
et al., "iDLG", 2020, Eq. 3 to 6). The gradient of b is s, that of W is s a^T: together the rank-one matrix
s (a, 1)^T, whose left singular vector is s up to its sign, from all entries that survived noise and pruning.

For the mean gradient of B samples the gradient of b is mean(p) - n / B with n_k the number of samples of class k,
so n = B (mean(p) - gradient) where mean(p) is known; it is estimated by running the model on dummies (Yin et al.,
CVPR 2021; Geng et al., "Towards General Deep Leakage in Federated Learning", 2021). Exact for untrained models,
whose outputs hardly depend on the input; with confident models the dummies' outputs aren't the samples'.

The difference of the weights after K steps of SGD is divided by what K steps of one gradient would have moved them by
(momentum included, weight decay taken off), and mean(p) is the average of those at the weights before and after, which
the server both knows (Dimitrov et al., TMLR 2022). That holds while the outputs change about evenly: at
large steps a label or two may come out wrong. With Adam, or steps such as clipping on the way, the difference is no sum
of gradients, and no count is claimed; the signs of the last bias's entries still prove classes (`proven_classes`).
Counts don't say which mini-batch a sample was in: labels are handed out in ascending order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from riskaudit.attacks.base import AttackNotApplicable, Observation
from riskaudit.attacks.linear_layers import LinearCall, linear_calls
from riskaudit.linalg import GramOperator, Lanczos, MatrixOperator
from riskaudit.release import Release
from riskaudit.release.local_training import LocalTrainingRelease
from riskaudit.release.steps.clip import Clip
from riskaudit.release.steps.dropout import Dropout
from riskaudit.release.steps.mask import Mask
from riskaudit.release.steps.prune import Prune
from riskaudit.release.steps.share import Share
from riskaudit.release.steps.soteria import Soteria

# The bias says where up is once it stands out of its noise by so many standard deviations.
CLEAR = 3.0
# Steps that multiply entries by numbers >= 0.
SIGNS_KEPT = (Clip, Dropout, Mask, Prune, Share, Soteria)
# Inputs that stand for an upload's samples, drawn from the prior.
NUM_DUMMIES = 64
# Rounds of alternating least squares, at most.
ALTERNATIONS = 20
# Change of a unit vector, and relative error of a squared singular value, at which an iteration ends.
SETTLED = 1e-12
# The longest side of a matrix whose singular vectors are found by decomposing its square, and products with it beyond.
DENSE = 256
PRODUCTS = 200


def with_labels(observation: Observation) -> Observation:
    """The observation with labels: its own where known, else the recovered ones.

    Raises:
        AttackNotApplicable: see `recover_labels`.
    """
    if observation.targets is not None:
        return observation
    return observation.with_targets(recover_labels(observation))


def recover_labels(observation: Observation) -> Tensor:
    """The most likely label of every sample, [B n], int64; ascending within an upload of several.

    Raises:
        AttackNotApplicable: the loss isn't cross-entropy, or the model doesn't end in a fully connected layer
            whose own gradient is released.
    """
    if observation.release.coupling == "joint":
        return _labels_of_uploads(observation)
    layer = OutputLayer(observation.release, observation.input_shape)
    labels = [layer.label(released) for released in observation.released]
    return torch.tensor(labels, dtype=torch.int64, device=observation.released.device)


def proven_classes(observation: Observation) -> list[list[int]]:
    """Classes that are in an upload for certain, of every upload; not how often, and others may be there too.

    The gradient of the last bias is p - onehot(label) of every sample, negative at its label alone. Means, clipping,
    pruning and masks multiply its entries by numbers >= 0, and local steps of SGD and Adam add up such multiples, with
    or without momentum: an entry of the sum is negative only where a sample of that class is in. Under noise it has to
    be so by `CLEAR` standard deviations.

    Raises:
        AttackNotApplicable: see `recover_labels`; or the last bias isn't released, or its shrinkage is part of it.
    """
    release = observation.release
    layer = OutputLayer(release, observation.input_shape)
    if not all(isinstance(step, SIGNS_KEPT) for step in release.spec.all_steps):
        raise AttackNotApplicable("steps of the release may change the signs of the last bias's gradient")
    if layer.bias is None:
        raise AttackNotApplicable("the gradient of the last bias, whose signs name classes, is not released as it is")
    if isinstance(release, LocalTrainingRelease) and release.training.weight_decay:
        raise AttackNotApplicable("with weight decay the signs of a difference of weights aren't those of gradients")
    least = CLEAR * (release.noise.std if release.noise is not None else 0.0)
    return [(each[layer.bias] < -least).nonzero().flatten().tolist() for each in observation.released]


def _labels_of_uploads(observation: Observation) -> Tensor:
    """The labels in every upload, by `recover_batch_labels` on what stands for its mean gradient."""
    release = observation.release
    # Sharing all parameters, which says that no buffers leave, changes nothing.
    is_whole = observation.released.shape[1] == sum(value.numel() for value in release.parameters.values())
    if not is_whole or not all(isinstance(step, Share) for step in release.spec.all_steps):
        raise AttackNotApplicable("labels can be read off the mean gradient or the difference of weights as it is only")
    like = observation.released.new_empty(NUM_DUMMIES, observation.dimension)
    prior = observation.prior.bind(torch.full((NUM_DUMMIES,), -1, device=like.device), like)
    draws = torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)
    dummies = observation.images(prior.mean + prior.root(draws))
    if observation.input_range is not None:
        dummies = dummies.clamp(*observation.input_range)
    recovered = []
    for released in observation.released:
        gradient, weights = released, [release.parameters]
        if isinstance(release, LocalTrainingRelease):
            gradient, weights = _over_training(release, released, observation.upload_size // release.spec.num_clients)
        recovered.append(recover_batch_labels(release, gradient, observation.upload_size, dummies, weights))
    return torch.cat(recovered)


def _over_training(
    release: LocalTrainingRelease, released: Tensor, num_samples: int
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """The mean gradient along a client's training [P], and the weights at its two ends, which the server knows.

    Raises:
        AttackNotApplicable: the difference isn't a sum of gradients.
    """
    before = release.parameters
    sizes = [value.numel() for value in before.values()]
    pairs = zip(before.items(), torch.split(released, sizes), strict=True)
    after = {name: value - part.reshape(value.shape) for (name, value), part in pairs}
    middle = torch.cat([(value + after[name]).reshape(-1) / 2 for name, value in before.items()])
    gradient = released / _steps_of_one_rate(release, num_samples) - release.training.weight_decay * middle
    return gradient, [before, after]


def _steps_of_one_rate(release: LocalTrainingRelease, num_samples: int) -> float:
    """What the mean gradient is multiplied by in a difference of weights, were it the same at all K steps.

    Raises:
        AttackNotApplicable: the difference isn't a sum of gradients.
    """
    training = release.training
    if training.optimizer != "sgd":
        raise AttackNotApplicable(f"labels can't be read off a difference of weights by {training.optimizer}")
    velocity = total = 0.0
    for _ in training.mini_batches(num_samples):
        velocity = training.momentum * velocity + 1.0
        total += velocity
    return training.lr * total


def label_counts(
    release: Release,
    mean_gradient: Tensor,
    num_samples: int,
    dummies: Tensor,
    weights: Sequence[dict[str, Tensor]] | None = None,
) -> Tensor:
    """How many samples of every class a mean gradient holds, [C], int64, adding up to ``num_samples``.

    Args:
        release: the model and its loss.
        mean_gradient: over the samples, [P].
        num_samples: B.
        dummies: inputs [N, *S] that stand for the samples, from the prior say.
        weights: at which the gradients were taken, over whose mean(p) is averaged; None for the model's own.

    Raises:
        AttackNotApplicable: as `recover_labels`.
    """
    layer = OutputLayer(release, tuple(dummies.shape[1:]))
    call, _ = layer.on(dummies)
    with torch.no_grad():
        logits = torch.cat([release.run(each, dummies) for each in weights or [release.parameters]])
    probabilities = logits.softmax(-1).double().mean(0)
    if layer.bias is not None:
        gradient = mean_gradient[layer.bias].double()
    else:
        assert layer.weight is not None
        # The rows' sums are those of the features times s.
        total = call.inputs.double().sum(-1).mean()
        gradient = mean_gradient[layer.weight].double().reshape(len(probabilities), -1).sum(-1) / total
    return rounded_counts(num_samples * (probabilities - gradient), num_samples)


def recover_batch_labels(
    release: Release,
    mean_gradient: Tensor,
    num_samples: int,
    dummies: Tensor,
    weights: Sequence[dict[str, Tensor]] | None = None,
) -> Tensor:
    """The labels in the mean gradient of an upload of several samples, ascending, [n]; see `label_counts`."""
    counts = label_counts(release, mean_gradient, num_samples, dummies, weights)
    return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)


def rounded_counts(estimates: Tensor, total: int) -> Tensor:
    """Whole numbers >= 0 nearest to estimates [C] that add up to ``total``, by largest remainders.

    Estimates below 0 count as 0, and the rest is scaled to the right sum first.
    """
    positive = estimates.nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
    scale = float(positive.sum())
    # Below that, the quotient is no number.
    none = scale < torch.finfo(torch.float64).eps
    shares = torch.full_like(positive, total / len(positive)) if none else positive * (total / scale)
    counts = shares.floor()
    missing = total - int(counts.sum())
    counts[torch.argsort(shares - counts, descending=True, stable=True)[:missing]] += 1
    return counts.to(torch.int64)


@final
class OutputLayer:
    """The fully connected layer whose outputs are the logits.

    Args:
        release: a model with cross-entropy.
        input_shape: *S.

    Raises:
        AttackNotApplicable: there is no such layer, or another loss.
    """

    def __init__(self, release: Release, input_shape: tuple[int, ...]) -> None:
        self.release = release
        probes = torch.zeros(2, *input_shape, dtype=release.dtype, device=release.device)
        calls, outputs = linear_calls(release, probes)
        if outputs.ndim != 2 or not _is_cross_entropy(release, outputs.shape[1]):
            raise AttackNotApplicable("labels can be read off the gradient of a cross-entropy on logits only")
        output_calls = [call for call in calls if _same(call.outputs, outputs)]
        if not output_calls:
            raise AttackNotApplicable("the logits don't come from a fully connected layer that is used once")
        self.name, self.num_classes = output_calls[-1].name, outputs.shape[1]
        self.weight, self.bias = output_calls[-1].weight, output_calls[-1].bias
        if self.weight is None and self.bias is None:
            raise AttackNotApplicable(f"the gradient of the last layer ({self.name}) is not released as it is")

    def on(self, inputs: Tensor) -> tuple[LinearCall, Tensor]:
        """The layer's call and the logits at inputs [N, *S]."""
        calls, outputs = linear_calls(self.release, inputs)
        return next(call for call in calls if call.name == self.name), outputs

    def label(self, released: Tensor) -> int:
        """The label of one sample's release [P]."""
        columns = []
        if self.weight is not None:
            columns.append(released[self.weight].double().reshape(self.num_classes, -1))
        if self.bias is not None:
            columns.append(released[self.bias].double()[:, None])
        matrix = torch.cat(columns, dim=1).nan_to_num(0.0, 0.0, 0.0)
        signal = _rank_one(matrix)
        return int((self._sign(signal, matrix) * signal).argmin())

    def _sign(self, signal: Tensor, matrix: Tensor) -> float:
        """1 or -1, which makes p - onehot of its direction."""
        noise = self.release.noise
        if self.bias is not None:
            # The bias's own input is 1, so its gradient is s itself.
            along = float(signal @ matrix[:, -1])
            if abs(along) > CLEAR * (noise.std if noise is not None else 0.0):
                return 1.0 if along > 0 else -1.0
        if self.num_classes > 2:
            # |s| is largest at the label: its entry is minus the sum of all others.
            return -1.0 if float(signal[signal.abs().argmax()]) > 0 else 1.0
        # Features after a ReLU or a sigmoid are positive.
        return 1.0 if float((signal @ matrix).sum()) >= 0 else -1.0


def _rank_one(matrix: Tensor) -> Tensor:
    """s of the best s a^T for the entries of a matrix [C, n] that aren't 0, which may have been removed; [C].

    Alternating least squares from the leading left singular vector, which it is where nothing was removed. Rows and
    columns of nothing but 0 have part in neither.
    """
    nonzero = matrix != 0
    rows, columns = nonzero.any(1), nonzero.any(0)
    whole: Tensor = matrix.new_zeros(len(matrix))
    if not bool(rows.any()):
        return whole
    matrix, nonzero = matrix[rows][:, columns], nonzero[rows][:, columns]
    signal = _leading_left(matrix)
    if not bool(nonzero.all()):
        signal = _alternated(signal, matrix, nonzero.double())
    whole[rows] = signal
    return whole


def _alternated(signal: Tensor, matrix: Tensor, nonzero: Tensor) -> Tensor:
    """The unit vector s [C] of the best s a^T for the entries of a matrix [C, n] that are there, from a first one."""
    tiny = torch.finfo(torch.float64).tiny
    for _ in range(ALTERNATIONS):
        features = signal @ matrix / (signal.square() @ nonzero).clamp_min(tiny)
        following = matrix @ features / (nonzero @ features.square()).clamp_min(tiny)
        following = following / following.norm().clamp_min(tiny)
        moved = float((following - signal).norm())
        signal = following
        if moved <= SETTLED:
            break
    return signal


def _leading_left(matrix: Tensor) -> Tensor:
    """The leading left singular vector of a matrix [C, n] that isn't 0, by its smaller side; [C].

    Decomposed there where that side is short, else found by Lanczos iterations: whatever the number of classes, no
    matrix of classes squared is formed.
    """
    if len(matrix) <= min(DENSE, matrix.shape[1]):
        leading: Tensor = torch.linalg.eigh(matrix @ matrix.mT)[1][:, -1]
        return leading
    if matrix.shape[1] <= DENSE:
        right = torch.linalg.eigh(matrix.mT @ matrix)[1][:, -1]
    else:
        start = torch.randn(1, matrix.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        gram = GramOperator(MatrixOperator(matrix[None]))
        (space,) = Lanczos(tolerance=SETTLED, max_matvecs=PRODUCTS).run(gram, start.to(matrix))
        (right,) = space.ritz_vectors([-1])
    left = matrix @ right
    unit: Tensor = left / left.norm().clamp_min(torch.finfo(torch.float64).tiny)
    return unit


def _is_cross_entropy(release: Release, num_classes: int) -> bool:
    """Whether the loss is cross-entropy, tried on logits."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, num_classes, generator=generator, dtype=torch.float64).to(release.device, release.dtype)
    tolerance = 100 * torch.finfo(release.dtype).eps
    for index, row in enumerate(logits):
        target = torch.tensor([index % num_classes], device=release.device)
        expected = F.cross_entropy(row[None], target)
        try:
            value = release.loss(row[None], target)
        except Exception:  # third-party losses may raise anything on other targets
            return False
        if value.numel() != 1 or not bool((value - expected).abs().max() <= tolerance * (1 + expected.abs())):
            return False
    return True


def _same(candidate: Tensor, outputs: Tensor) -> bool:
    return candidate.shape == outputs.shape and bool(torch.equal(candidate, outputs))
