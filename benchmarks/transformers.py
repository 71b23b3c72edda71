"""Products with the Jacobian of transformers, per token: by layers, and by automatic differentiation of the whole.

    python -m benchmarks.transformers

BERT and GPT-2 of two layers (width 128, 2 heads, 500 words) at embedded sequences without padding, and timm's smallest
ViT (12 layers, width 192) at images of 64 pixels; weights and inputs are random. The unit is one gradient of the whole
batch per sample of it. Seconds are those that the processor worked. Memory is the peak of all tensors of one product,
set-up included.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contestants import GENERIC_SETTLES_AFTER
from benchmarks.joint import tensor_peak
from benchmarks.models import SEED, normal_vectors
from benchmarks.operator import relative_difference
from benchmarks.options import Printer, Settings, experiment_parser
from benchmarks.tables import Spread, Table
from benchmarks.timing import median_ratio, take_turns_within
from riskaudit.jacobian import GenericJacobian, Jacobian, JacobianMaker, jacobian_maker, joint_jacobian_maker
from riskaudit.jacobian.joint import JointJacobianMaker
from riskaudit.release import Batch, PerSampleRelease, Release, make_release
from riskaudit.release.joint import JointRelease
from riskaudit.torchvision_compat import import_torchvision

SAMPLES, REPEATS = 4, 5
WORDS, WIDTH, LAYERS, HEADS, CLASSES = 500, 128, 2, 2, 4
COLUMNS = {
    "model": "model",
    "release": "release",
    "tokens": "tokens",
    "gradient": "gradient, ms per sample",
    "structured": "H v by layers, ms per sample",
    "token": "ms per token",
    "gradients": "gradient-equivalents",
    "generic": "generic H v, gradient-equivalents",
    "ratio": "generic / by layers",
    "mebibytes": "by layers, MiB",
    "generic_mebibytes": "generic, MiB",
}


class Embedded(nn.Module):
    """A Hugging Face model as a function of embedded sequences [B, T, E]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Its logits."""
        logits: Tensor = self.model(inputs_embeds=x).logits
        return logits


@dataclass(frozen=True)
class Case:
    """One model at one length.

    Attributes:
        name: as the table has it.
        build: the model, given the number of tokens.
        shape: of one input, given the number of tokens.
        tokens: that the layers see.
        per_token: whether every token has a target.
        release: what leaves.
    """

    name: str
    build: Callable[[int], nn.Module]
    shape: Callable[[int], tuple[int, ...]]
    tokens: int
    per_token: bool = False
    release: str = "gradient"


def _bert(_tokens: int) -> nn.Module:
    transformers: Any = import_module("transformers")
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, num_labels=CLASSES,
    )  # fmt: skip
    return Embedded(transformers.BertForSequenceClassification(config))


def _gpt2(_tokens: int) -> nn.Module:
    transformers: Any = import_module("transformers")
    config = transformers.GPT2Config(
        vocab_size=WORDS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, bos_token_id=0, eos_token_id=0
    )
    return Embedded(transformers.GPT2LMHeadModel(config))


def _vit(_tokens: int) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, num_classes=CLASSES)
    return model


def _sequence(tokens: int) -> tuple[int, ...]:
    return tokens, WIDTH


BERT = Case("bert", _bert, _sequence, 32)
CASES = (
    replace(BERT, tokens=8),
    BERT,
    replace(BERT, tokens=128),
    replace(BERT, release=f"mean:{SAMPLES}"),
    Case("gpt2, next words", _gpt2, _sequence, 32, per_token=True),
    # 16 patches and the class token.
    Case("vit_tiny_patch16", _vit, lambda _: (3, 64, 64), 17),
)
QUICK = (replace(BERT, tokens=2), replace(BERT, tokens=2, release="mean:2"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = experiment_parser(__doc__, None)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"rounds (default: {REPEATS})")
    options = parser.parse_args(arguments)
    settings = Settings(
        dtype=options.dtype, threads=options.threads, repeats=1 if options.quick else options.repeats,
        quick=options.quick,
    )  # fmt: skip
    settings.apply()
    with warnings.catch_warnings():
        # torchvision's operators may be of another build than torch: its models run without them.
        warnings.simplefilter("ignore")
        import_torchvision()
    printer = Printer("Transformers, per token", settings)
    table = Table(f"One product H v, {2 if settings.quick else SAMPLES} samples", COLUMNS)
    for case in QUICK if settings.quick else CASES:
        table.rows.append(measured(case, settings))
    printer.add(table)
    printer.finish(options.json)


def measured(case: Case, settings: Settings) -> dict[str, Any]:
    """The row of one case."""
    count = 2 if settings.quick else SAMPLES
    release, batch, make = _release(case, count, settings)
    ours, generic = make(batch), GenericJacobian(release, batch)
    vectors = normal_vectors(ours.num_samples, ours.shape[1], ours.dtype, ours.device)
    products: dict[str, Callable[[], object]] = {
        "gradient": _gradient(release, batch),
        "structured": lambda: ours.hessian().matvec(vectors),
        "generic": lambda: generic.hessian().matvec(vectors),
    }
    for name, function in products.items():
        for _ in range(GENERIC_SETTLES_AFTER if name == "generic" else 2):
            function()
    seconds = take_turns_within(products, settings.repeats, settings.torch_device, math.inf)
    times = {name: [time / count for time in values] for name, values in seconds.items()}
    difference = relative_difference(ours.hessian().matvec(vectors), generic.hessian().matvec(vectors).detach())
    return {
        "model": case.name,
        "release": case.release,
        "tokens": case.tokens,
        "gradient": 1000 * Spread.of(times["gradient"]).median,
        "structured": Spread.of([1000 * value for value in times["structured"]]),
        "token": 1000 * Spread.of(times["structured"]).median / case.tokens,
        "gradients": median_ratio(times["structured"], times["gradient"]),
        "generic": median_ratio(times["generic"], times["gradient"]),
        "ratio": median_ratio(times["generic"], times["structured"]),
        "mebibytes": tensor_peak(lambda: make(batch).hessian().matvec(vectors)) / 2**20,
        "generic_mebibytes": tensor_peak(lambda: GenericJacobian(release, batch).hessian().matvec(vectors)) / 2**20,
        "difference": difference,
    }


def _release(case: Case, count: int, settings: Settings) -> tuple[Release, Batch, Callable[[Batch], Jacobian]]:
    """A release, a batch of its uploads, and what makes its Jacobian by layers."""
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = case.build(case.tokens).to(settings.torch_dtype).eval()
    inputs = torch.randn(count, *case.shape(case.tokens), dtype=torch.float64).to(settings.torch_dtype)
    targets = torch.randint(CLASSES, (count, case.tokens) if case.per_token else (count,))
    loss = _loss_of_words if case.per_token else F.cross_entropy
    release = make_release(model, loss, case.release)
    batch = Batch(inputs, targets, count if release.coupling == "joint" else 1)
    maker: JacobianMaker | JointJacobianMaker
    if isinstance(release, JointRelease):
        maker = joint_jacobian_maker(release, batch)
    else:
        assert isinstance(release, PerSampleRelease)
        maker = jacobian_maker(release, batch)
    if maker.kind != "structured":
        raise RuntimeError(f"{case.name} isn't audited by its layers: {maker.reason}")
    return release, batch, maker


def _loss_of_words(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _gradient(release: Release, batch: Batch) -> Callable[[], object]:
    """One forward and one backward pass of the whole batch: the unit of cost."""
    weights = [weight for weight in release.model.parameters() if weight.requires_grad]

    def gradient() -> object:
        loss = release.loss(release.model(batch.inputs), batch.targets)
        return torch.autograd.grad(loss, weights, allow_unused=True)

    return gradient


if __name__ == "__main__":
    main()
