"""Texts: do proxies rank what TAG makes of them, and are tokens told as often as token recovery says?

    python -m benchmarks.texts agreement --rows agreement.jsonl
    python -m benchmarks.texts model --rows model.jsonl [--model FOLDER]
    python -m benchmarks.texts adapters --rows adapters.jsonl

``agreement`` takes up Figure 4 of Zhang et al. (NeurIPS 2023): a random BERT and GPT-2 (500 words, two layers),
sentences of 5 to 8 random tokens, their classification gradients under noise, attacked by TAG; rank correlations of
proxies with what came out, per noise level. ``model`` looks at those models, or at a folder of Hugging Face's: at some
positions of some sentences the informed attacker tries every candidate on real draws of the noise, beside the predicted
token recovery; and how many tokens the attack by spans tells without noise. ``adapters`` looks at what LoRA adapters of
the random models tell, in the first round and after training: the rank of J^T J and what is revealed. Finished parts
are kept in the file of rows, one a line, and not done again.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.options import Printer
from benchmarks.options import Settings as Measurement
from benchmarks.tables import Table
from riskaudit.attacks import TokenSpanAttack, TransformerGradients
from riskaudit.audit import AuditSettings
from riskaudit.audit.audit import audit_client
from riskaudit.audit.client import Client, make_client
from riskaudit.inputs import Checkpoint, Samples, load_checkpoint
from riskaudit.inputs.huggingface.library import import_transformers, quiet
from riskaudit.inputs.texts import with_tokens
from riskaudit.linalg import Spectrum
from riskaudit.release import Batch
from riskaudit.sensitivity.tokens import CHUNK_ENTRIES, TokenDifferences
from riskaudit.statistics.rank_correlation import rank_correlation
from riskaudit.studies.attacking import Target, attack_rows, metrics_of

WORDS, WIDTH, CLASSES, SHORTEST, LONGEST = 500, 16, 3, 5, 8
PROXIES = ("posterior_rmse", "map_i2f", "token_recovery")
MEASURED = ("rmse", "token_accuracy", "rouge1", "rougeL", "bleu", "feature_mse")
SENTENCES = (
    "the nurse wrote down his blood pressure before lunch",
    "she moved her savings to another bank in spring",
    "our neighbours are selling their house this year",
    "he failed the exam and told nobody",
    "the invoice was paid twice by mistake",
    "rain is expected over the hills tonight",
    "my brother takes two pills every morning",
    "the committee will meet again on friday afternoon at nine",
    "please cancel my appointment with the dentist",
    "they found a small crack in the left wing",
    "his daughter starts school in september",
    "the loan was refused because of her age",
    "we left the keys under the third stone",
    "the test came back negative last week",
    "nobody in the office knew about the letter",
    "an old friend called me from the airport",
)
LORA_RANK, LORA_STEPS, LORA_RATE = 1, 20, 0.01
ADAPTER_RELEASES = {"adapters": "share:*lora_*,gaussian:0.001", "adapters and head": "gaussian:0.001"}
Row = dict[str, Any]


def kept(path: Path, key: str, make: Callable[[], Row]) -> Row:
    """The row of this key in a file of rows; made and added where it isn't there."""
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        row: Row = json.loads(line)
        if row["key"] == key:
            return row
    row = {"key": key, **make()}
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def random_model(kind: str, folder: Path) -> Checkpoint:
    """A small BERT or GPT-2 with random weights, as a folder that is read back."""
    transformers = import_transformers()
    common = {"vocab_size": WORDS, "num_labels": CLASSES, "initializer_range": 0.3}
    if kind == "gpt2":
        config = transformers.GPT2Config(
            n_embd=WIDTH, n_layer=2, n_head=2, n_positions=LONGEST, bos_token_id=1, eos_token_id=1, **common
        )
        network = transformers.GPT2ForSequenceClassification
    else:
        config = transformers.BertConfig(
            hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * WIDTH,
            max_position_embeddings=LONGEST, **common,
        )  # fmt: skip
        network = transformers.BertForSequenceClassification
    with quiet(transformers), torch.random.fork_rng():
        torch.manual_seed(0)
        network(config).save_pretrained(folder)
    return load_checkpoint(folder)


def random_texts(checkpoint: Checkpoint, count: int) -> Samples:
    """Sentences of random tokens, none of them special."""
    assert checkpoint.text is not None
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(5, WORDS, (count, LONGEST), generator=generator).tolist()
    rows = [row[: SHORTEST + number % (LONGEST - SHORTEST + 1)] for number, row in enumerate(drawn)]
    tokens, targets = checkpoint.text.of_numbers(rows, "drawn"), torch.arange(count) % CLASSES
    return Samples(tokens.embedded(), targets, tuple(map(str, range(count))), tokens=tokens)


def agreement(printer: Printer, options: argparse.Namespace) -> None:
    """Rank correlations of proxies with TAG's reconstructions, per model and noise level."""
    table = Table(
        f"TAG on {options.sentences} sentences, {options.steps} steps: means, and Spearman with 95 % intervals",
        {"model": "model", "std": "noise std", "measured": "measured by", "mean": "mean"}
        | {name: name for name in PROXIES},
    )
    for kind in options.kinds:
        for std in options.noise_std:
            key = f"{kind} {std:g} {options.sentences} {options.steps}"
            row = kept(options.rows, key, partial(attacked, kind, std, options.sentences, options.steps))
            table.rows += [correlated(kind, std, name, row) for name in MEASURED]
            table.notes.append(f"{kind}, {std:g}: {row['cpu']:.0f} s of one core, {row['seconds']:.0f} s of wall time.")
    printer.add(table)


def attacked(kind: str, std: float, count: int, steps: int) -> Row:
    """Predictions and TAG's results for every sentence."""
    began, worked = time.perf_counter(), time.process_time()
    with TemporaryDirectory() as folder:
        checkpoint = random_model(kind, Path(folder) / kind)
    samples = random_texts(checkpoint, count)
    settings = AuditSettings(release=f"gaussian:{std:g}", proxies=PROXIES, checks=False)
    client = make_client(checkpoint, samples, settings)
    result = audit_client(client)
    attack, indices = TransformerGradients(steps=steps), list(range(count))
    found = attack_rows("tag", attack, Target.of(client, None, True), indices, metrics_of(client, MEASURED), False)
    return {
        "proxies": {name: [row.proxies[name].value for row in result.samples] for name in PROXIES},
        "metrics": {name: [row.metrics[name] for row in found] for name in MEASURED},
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - worked,
    }


def correlated(kind: str, std: float, measured: str, row: Row) -> Row:
    """A line of the table."""
    values = row["metrics"][measured]
    line: Row = {"model": kind, "std": std, "measured": measured, "mean": statistics.fmean(values)}
    for name in PROXIES:
        pairs = [pair for pair in zip(row["proxies"][name], values, strict=True) if None not in pair]
        found = rank_correlation(*zip(*pairs, strict=True), pairs=False) if len(pairs) > 3 else None
        if found is not None and found.spearman is not None:
            ends = "" if found.low is None else f" ({found.low:.2f} to {found.high:.2f})"
            line[name] = f"{found.spearman:.2f}{ends}"
    return line


def model(printer: Printer, options: argparse.Namespace) -> None:
    """Token recovery against the informed attacker, and the attack by spans: of a folder, or of the random models."""
    with TemporaryDirectory() as folder:
        for name in ["folder"] if options.model else options.kinds:
            if options.model:
                checkpoint = load_checkpoint(options.model, task="classification", classes=("no", "yes"))
                samples = own_texts(checkpoint, options.sentences)
            else:
                checkpoint = random_model(name, Path(folder) / name)
                samples = random_texts(checkpoint, options.sentences)
            compare_tokens(printer, name, checkpoint, samples, options)


def own_texts(checkpoint: Checkpoint, count: int) -> Samples:
    """The first of the sentences above."""
    assert checkpoint.text is not None
    tokens = checkpoint.text.tokens(SENTENCES[:count], "sentences")
    count = len(tokens.ids)
    return Samples(tokens.embedded(), torch.arange(count) % 2, tuple(map(str, range(count))), tokens=tokens)


def compare_tokens(
    printer: Printer, name: str, checkpoint: Checkpoint, samples: Samples, options: argparse.Namespace
) -> None:
    """Both tables of one model."""
    spans = Table(
        f"{name}: tokens by spans, without noise",
        {"text": "text", "tokens": "tokens", "told": "told right", "status": "status", "cpu": "s of one core"},
    )
    told: list[Row] = []
    for index in range(len(samples)):
        alone = samples.select([index])
        if index < options.told:
            key = f"{name} told {index} {options.positions} {options.draws}"
            told.append(kept(options.rows, key, partial(informed, checkpoint, alone, options)))
        if index < options.spans:
            spans.rows.append(kept(options.rows, f"{name} span {index}", partial(spanned, checkpoint, alone, index)))
    if told:
        printer.add(recoveries(name, told, options))
    printer.add(spans)


def recoveries(name: str, told: Sequence[Row], options: argparse.Namespace) -> Table:
    """Predictions beside what the informed attacker reached, per noise level."""
    columns = {"std": "noise std", "predicted": "token recovery", "attacked": "informed attacker", "off": "difference"}
    recovered = Table(f"{name}: token recovery and the informed attacker", columns)
    for place, std in enumerate(options.noise_std):
        predicted = statistics.fmean(value for row in told for value in row["predicted"][place])
        reached = statistics.fmean(value for row in told for value in row["attacked"][place])
        recovered.rows.append({"std": std, "predicted": predicted, "attacked": reached, "off": reached - predicted})
    recovered.notes.append(
        f"{sum(len(row['predicted'][0]) for row in told)} positions of {len(told)} sentences, {options.draws} draws of "
        f"the noise each, {told[0]['candidates']} candidates at each; "
        f"{sum(row['cpu'] for row in told):.0f} s of one core, {max(row['gigabytes'] for row in told):.1f} GB at most."
    )
    return recovered


def client_of(checkpoint: Checkpoint, samples: Samples, release: str) -> Client:
    """Of one sentence."""
    return make_client(checkpoint, samples, AuditSettings(release=release, dtype="float32", checks=False))


def informed(checkpoint: Checkpoint, samples: Samples, options: argparse.Namespace) -> Row:
    """Predicted recovery at some positions of one text, and how often trying every candidate tells the token."""
    worked = time.process_time()
    client = client_of(checkpoint, samples, "gaussian:1")
    jacobian = client.jacobian(client.release)(client.upload_batch([0]))
    assert samples.tokens is not None
    differences = TokenDifferences(jacobian, samples.tokens, [0], 0, 0.05)
    places = differences.private_positions(0)[: options.positions]
    predicted, reached = [list[float]() for _ in options.noise_std], [list[float]() for _ in options.noise_std]
    for place in places:
        confusion = differences._confusion(0, place)
        for own, std in zip(predicted, options.noise_std, strict=True):
            own.append(confusion.recovery(std).value)
        for own, value in zip(
            reached, tried(client, samples, differences, place, options.noise_std, options.draws), strict=True
        ):
            own.append(value)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cpu = time.process_time() - worked
    return {
        "predicted": predicted, "attacked": reached, "candidates": differences.num_candidates, "cpu": cpu,
        "gigabytes": peak,
    }  # fmt: skip


def tried(
    client: Client, samples: Samples, differences: TokenDifferences, place: int, stds: Sequence[float], draws: int
) -> list[float]:
    """Share of noise draws, per std, at which the truth is the nearest of all candidates to what was sent."""
    assert samples.tokens is not None
    batch, ids = client.upload_batch([0]), samples.tokens.ids[0]
    assert batch.lengths is not None
    true = torch.tensor([samples.tokens.true_token(0, place)])
    numbers = torch.cat([true, differences._candidates(0, place)])
    read, targets = with_tokens(samples.tokens.task, ids, batch.targets[0].cpu(), place, numbers)
    size = max(1, CHUNK_ENTRIES // client.release.num_entries)
    parts = zip(torch.split(read, size), torch.split(targets, size), strict=True)
    rows = [
        client.release.mean(
            Batch(some, told, numbers=(0,) * len(some), lengths=batch.lengths.expand(len(some)))
        ).detach()
        for some, told in parts
    ]
    candidates = torch.cat(rows)
    # Seen from their mean, so that no digits are lost: ||y - r_v||^2 = ||y||^2 - 2 y . r_v + ||r_v||^2, y = r_0 + n.
    candidates -= candidates.mean(0)
    squared = candidates.square().sum(1).double()
    inner = (candidates @ candidates[0]).double()
    generator, shares = torch.Generator().manual_seed(1000 + place), torch.zeros(len(stds))
    for _ in range(draws):
        noise = torch.randn(candidates.shape[1], generator=generator, dtype=candidates.dtype)
        along = (candidates @ noise).double()
        for number, std in enumerate(stds):
            shares[number] += float((squared - 2 * (inner + std * along)).argmin() == 0)
    return (shares / draws).tolist()


def spanned(checkpoint: Checkpoint, samples: Samples, index: int) -> Row:
    """The attack by spans on one text: whether every token is right."""
    worked = time.process_time()
    client = make_client(checkpoint, samples, AuditSettings(release="gradient", checks=False))
    found = TokenSpanAttack().run(Target.of(client, None, True).observe([0]), torch.Generator().manual_seed(0))
    right = (found.inputs - client.batch([0]).inputs).abs().amax(-1)[0] == 0
    return {
        "text": index, "tokens": len(right), "told": int(right.sum()), "status": found.status[0],
        "cpu": time.process_time() - worked,
    }  # fmt: skip


def adapters(printer: Printer, options: argparse.Namespace) -> None:
    """What leaves of LoRA adapters in the first round, where every B is zero, and after some steps of training."""
    columns = {
        "model": "model", "parts": "what leaves", "steps": "steps", "entries": "entries", "moving": "not zero",
        "dimension": "d, median", "rank": "rank of J^T J, median", "revealed": "revealed at 0.001, median",
    }  # fmt: skip
    table = Table(f"LoRA of rank {LORA_RANK}, {options.sentences} sentences", columns)
    for kind in options.kinds:
        for steps in (0, LORA_STEPS):
            for parts, release in ADAPTER_RELEASES.items():
                key = f"{kind} {steps} {parts} {options.sentences}"
                make = partial(adapted, kind, steps, release, options.sentences)
                table.rows.append({"parts": parts, **kept(options.rows, key, make)})
    printer.add(table)


def adapted(kind: str, steps: int, release: str, count: int) -> Row:
    """One line of `adapters`: what of the adapters' gradient isn't zero, its rank, and what an audit says."""
    with TemporaryDirectory() as name:
        folder, base = Path(name) / "adapter", Path(name) / "base"
        samples = random_texts(random_model(kind, base), count)
        train_adapters(kind, base, folder, samples, steps)
        checkpoint = load_checkpoint(folder, base=base)
        client = make_client(checkpoint, samples, AuditSettings(release=release, checks=False, solver="dense"))
        ranks, dimensions = list[int](), list[int]()
        for index in range(count):
            batch = client.upload_batch([index])
            jacobian = client.jacobian(client.release)(batch)
            spectrum = Spectrum.of(jacobian.hessian())
            ranks.append(int(spectrum.rank))
            dimensions.append(batch.inputs[0].numel() if batch.lengths is None else int(batch.lengths[0]) * WIDTH)
        gradient = client.release.mean(client.upload_batch([0]))
        rows = audit_client(client).samples
    return {
        "model": kind, "steps": steps, "entries": client.release.num_entries, "moving": int((gradient != 0).sum()),
        "dimension": statistics.median(dimensions), "rank": statistics.median(ranks),
        "revealed": statistics.median(row.proxies["revealed_fraction"].value or 0.0 for row in rows),
    }  # fmt: skip


def train_adapters(kind: str, base: Path, folder: Path, samples: Samples, steps: int) -> None:
    """Adapters of query and value as PEFT makes them, after steps of Adam on the samples, saved."""
    import peft

    transformers = import_transformers()
    networks = {"bert": transformers.BertForSequenceClassification, "gpt2": transformers.GPT2ForSequenceClassification}
    config = peft.LoraConfig(
        r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=["query", "value"] if kind == "bert" else ["c_attn"],
        task_type="SEQ_CLS", fan_in_fan_out=kind == "gpt2",
    )  # fmt: skip
    assert samples.tokens is not None
    with quiet(transformers), torch.random.fork_rng():
        torch.manual_seed(1)
        network = peft.get_peft_model(networks[kind].from_pretrained(base), config)
        trained = [value for value in network.parameters() if value.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=LORA_RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            for ids, length, target in zip(samples.tokens.ids, samples.tokens.lengths, samples.targets, strict=True):
                logits = network(input_ids=ids[None, :length]).logits
                torch.nn.functional.cross_entropy(logits, target[None]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        network.save_pretrained(str(folder))


EXPERIMENTS: dict[str, Callable[[Printer, argparse.Namespace], None]] = {
    "agreement": agreement,
    "model": model,
    "adapters": adapters,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one experiment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=list(EXPERIMENTS))
    parser.add_argument("--rows", type=Path, required=True, metavar="FILE", help="finished parts, one a line")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="of Hugging Face's, for `model`; else random ones")
    parser.add_argument("--kinds", nargs="+", choices=["bert", "gpt2"], default=["bert", "gpt2"])
    parser.add_argument("--sentences", type=int, help="default: 32; 16 for `model`, 8 for `adapters`")
    parser.add_argument("--told", type=int, default=2, help="sentences of `model` that tokens are tried on")
    parser.add_argument("--positions", type=int, default=2, help="of each of these")
    parser.add_argument("--draws", type=int, default=200, help="of the noise at each position, for `model`")
    parser.add_argument("--spans", type=int, default=8, help="sentences of `model` that the attack by spans is run on")
    parser.add_argument("--steps", type=int, default=1000, help="of TAG")
    parser.add_argument("--noise-std", type=float, nargs="+", help="default: three levels; for `model` four decades")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="tiny sizes that only try the code")
    options = parser.parse_args(arguments)
    is_model = options.experiment == "model"
    options.sentences = options.sentences or {"model": len(SENTENCES), "adapters": 8}.get(options.experiment, 32)
    options.noise_std = options.noise_std or ([1e-3, 1e-2, 1e-1, 1.0] if is_model else [1e-3, 1e-2, 1e-1])
    if options.quick:
        options.sentences, options.steps, options.noise_std, options.kinds = 4, 2, options.noise_std[:1], ["bert"]
    measurement = Measurement(threads=1, dtype="float32" if is_model else "float64")
    measurement.apply()
    printer = Printer("Texts", measurement)
    EXPERIMENTS[options.experiment](printer, options)
    printer.finish(options.json)


if __name__ == "__main__":
    main()
