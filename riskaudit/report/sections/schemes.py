"""What a federated scheme sends, in words: mean gradients, weights after local training, aggregates, shared parts.

Read off the release's own text, which a report has without torch.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from statistics import median

from riskaudit.document import tables
from riskaudit.document.blocks import Table
from riskaudit.errors import ReleaseError
from riskaudit.formatting import count, given, number, short
from riskaudit.release.grammar import ReleaseSpec
from riskaudit.release.steps.dropout import Dropout
from riskaudit.release.steps.share import Share
from riskaudit.release.steps.soteria import Soteria
from riskaudit.release.training import LocalTraining
from riskaudit.results import SampleRow, columns
from riskaudit.results.facts import Facts

_LISTED_IDS = 8
_PRINTED_UPLOADS = 20


def attacker_words(facts: Facts) -> str:
    """Whose numbers the report goes by, after a preposition."""
    return {
        None: "the attacker",
        "informed": "an attacker who knows all other samples of the upload",
        "outsider": "an attacker who knows no sample of the upload",
    }[facts.attacker]


def by_whom(facts: Facts) -> str:
    """Who is meant, after a verb in the passive; nothing where there is but one attacker."""
    return f" by {attacker_words(facts)}" if facts.is_joint else ""


@dataclass(frozen=True)
class Scheme:
    """What an upload is made of, as far as the release's text can be read."""

    facts: Facts

    @cached_property
    def spec(self) -> ReleaseSpec | None:
        """The release; None for one of another version, or of a file that nobody need have written honestly."""
        with contextlib.suppress(ReleaseError):
            return ReleaseSpec.parse(self.facts.result.release.spec)
        return None

    @property
    def num_clients(self) -> int:
        """Clients whose uploads are averaged before anybody sees them."""
        return 1 if self.spec is None else self.spec.num_clients

    @property
    def upload_size(self) -> int:
        """Samples of an upload, those of all its clients together."""
        return self.facts.result.release.upload_size or 1

    @property
    def samples_per_client(self) -> int:
        """Samples of one client's part of an upload."""
        return max(1, self.upload_size // self.num_clients)

    @cached_property
    def uploads(self) -> dict[int, list[int]]:
        """Places of the samples of every upload."""
        uploads: dict[int, list[int]] = {}
        for place, row in enumerate(self.facts.result.samples):
            if row.upload is not None:
                uploads.setdefault(row.upload, []).append(place)
        return uploads

    def cards(self) -> list[tuple[str, str]]:
        """What is sent, an entry for everything that an attacker has to take into account."""
        if self.spec is None:
            return []
        cards = self._transformation_card()
        if self.spec.training is not None:
            cards.append(("FedAvg", self._training_words(self.spec.training)))
        elif self.spec.mean is not None:
            cards.append(
                (
                    "FedSGD",
                    f"the mean gradient of {count(self.samples_per_client, 'sample')}, at the weights that the server "
                    "sent. Each sample's part is divided by their number, the noise is not.",
                )
            )
        if self.num_clients > 1:
            cards.append(("Secure aggregation", self._aggregation_words()))
        cards += [("Shared part", self._share_words(step)) for step in self.spec.all_steps if isinstance(step, Share)]
        cards += [("Soteria", _soteria_words(step)) for step in self.spec.all_steps if isinstance(step, Soteria)]
        cards += [
            (
                "Dropout of entries",
                f"every entry of an upload is 0 with probability {given(step.probability)}, drawn anew for each "
                "upload. The server sees which entries.",
            )
            for step in self.spec.all_steps
            if isinstance(step, Dropout)
        ]
        return [*cards, *self._adapted_card(), *self._bottleneck_card(), *self._norm_card()]

    def _transformation_card(self) -> list[tuple[str, str]]:
        """What the client does to its images, and what that does to errors."""
        if self.spec is None or self.spec.transformation is None:
            return []
        changes, ends = list[float](), list[tuple[float | None, float | None]]()
        for row in self.facts.result.samples:
            if row.transformation_rmse is not None:
                changes.append(row.transformation_rmse)
                ends += [] if row.original_rmse is None else [row.original_rmse.ends]
        known = [(low, high) for low, high in ends if low is not None and high is not None]
        text = (
            f"the client trains on images T(x) that policy {self.spec.transformation.policy} of ATS makes of its own "
            "images x, after a random crop and flip. All errors are against T(x), which is what an upload tells of; an "
            "attacker matches T(x) and needs to know nothing of the policy."
        )
        if changes:
            text += f" T changes an image by a median RMSE of {number(median(changes))}."
        if known:
            low, high = (median(end) for end in zip(*known, strict=True))
            text += (
                f" Against x the posterior error is between {number(low)} and {number(high)} (medians of the bounds), "
                "for who takes T(x) for x; who undoes what T keeps, such as a shift, may come nearer."
            )
        return [("ATS", text)]

    def _adapted_card(self) -> list[tuple[str, str]]:
        """What an attacker who knows the defence goes by, and how often that is the riskier."""
        result = self.facts.result
        if result.release.adapted is None:
            return []
        adapted = [row for row in result.samples if row.adapted]
        proxies = sorted({proxy for row in adapted for proxy in row.adapted}, key=self.facts.order)
        found = (
            f"of {count(len(adapted), 'sample')} some number is the second one's "
            f"({', '.join(map(self.facts.title, proxies))})"
            if adapted
            else "all of them are the first one's"
        )
        return [
            (
                "An attacker who knows the defence",
                f"leaves out what it spoils, and goes by {short(result.release.adapted, 120)}. Every sample was "
                f"audited as both releases, and of each number the riskier stands: {found}.",
            )
        ]

    def _bottleneck_card(self) -> list[tuple[str, str]]:
        checkpoint = self.facts.result.checkpoint
        draw, draws = checkpoint.bottleneck_draw, checkpoint.num_bottleneck_draws
        if draw is None:
            return []
        taken = f"Here it is one draw (number {draw}) for all samples, and every number is conditional on it."
        if draws > 1:
            taken = (
                f"Here every sample was audited at {draws} draws (numbers {draw} to {draw + draws - 1}), and of each "
                f"number the riskiest draw's stands; another draw may be riskier still. {self._spread_words()}"
            )
        return [
            (
                "PRECODE",
                "the model has a variational bottleneck, whose noise is drawn anew in every pass of training. "
                f"{taken} Its divergence is part of the loss whose gradient leaves. Layers before the bottleneck leak "
                "as they do without it: the input of a first linear layer can be divided out of its gradient whatever "
                "is drawn (attack analytic).",
            )
        ]

    def _spread_words(self) -> str:
        """How much the number that decides differs over draws."""
        name = self.facts.headline
        spreads = [row.over_draws[name] for row in self.facts.result.samples if name in row.over_draws]
        if not spreads:
            return "What differs between draws isn't known."
        widest = max(spreads, key=lambda spread: spread.high - spread.low)
        mean = sum(spread.mean for spread in spreads) / len(spreads)
        return (
            f"The {self.facts.title(name).lower()} differs over draws by {number(widest.high - widest.low)} at most "
            f"(from {number(widest.low)} to {number(widest.high)} in one sample), and is {number(mean)} on average "
            "over draws and samples."
        )

    def _training_words(self, training: LocalTraining) -> str:
        size = self.samples_per_client
        steps = len(training.mini_batches(size))
        batch = size if training.batch is None else min(training.batch, size)
        batches = (
            f"all {count(size, 'sample')} at once"
            if batch == size
            else f"mini-batches of {batch:,} out of {count(size, 'sample')}"
        )
        settings = [
            f"learning rate {given(training.lr)}",
            *([f"momentum {given(training.momentum)}"] if training.momentum else []),
            *([f"weight decay {given(training.weight_decay)}"] if training.weight_decay else []),
        ]
        order = "the order of the data" if training.shuffle is None else f"an order shuffled with {training.shuffle}"
        optimizer = {"sgd": "SGD", "adam": "Adam"}[training.optimizer]
        return (
            f"the difference of the weights, before minus after {count(training.epochs, 'epoch')} of {optimizer} on "
            f"{batches} ({', '.join(settings)}; {count(steps, 'step')}, in {order}), as it is sent: not divided by the "
            "learning rate. The attacker is taken to know all of these settings, and can repeat the training on a "
            "guess."
        )

    def _aggregation_words(self) -> str:
        return (
            f"the server sees only the mean of the uploads of {count(self.num_clients, 'client')} with "
            f"{count(self.samples_per_client, 'sample')} each. That hides whose a sample is, not the sample: what it "
            f"protects is what a crowd of {self.upload_size:,} protects. Here the audited data stand in for all "
            "clients: consecutive samples of theirs play the other clients' part (the table of uploads says which), "
            "and numbers for other clients with other data would differ."
        )

    def _share_words(self, step: Share) -> str:
        release = self.facts.result.release
        sent = "" if release.num_entries is None else f": {release.num_entries:,} numbers"
        return (
            f"only parameters whose names match {short(step.patterns, 80)} are sent{sent}. What isn't sent, or is "
            "frozen, is not part of the upload; the attacker is still taken to know all weights that the client "
            "started from."
        )

    def _norm_card(self) -> list[tuple[str, str]]:
        words = {
            "batch": "every batch is normalised with its own mean and variance, as in training, so that a sample's "
            "part in the upload depends on the others. Running statistics are not part of the audited upload.",
            "running": "the stored running statistics are used, and no sample depends on another.",
        }
        batch_norm = self.facts.result.release.batch_norm if self.facts.is_joint else None
        return [] if batch_norm is None else [("Batch norm", words[batch_norm])]


def attackers_table(facts: Facts) -> Table:
    """The two attackers of a joint upload: what they know, who that may be, and whose numbers decide."""
    decides = {True: "verdicts, limits and noise go by it", False: "reported beside it"}
    rows = [
        (
            "Informed",
            "all other samples of the upload",
            "whoever made or holds the others, or reconstructed them before",
            facts.attacker == "informed",
        ),
        (
            "Outsider",
            "none of the upload's samples",
            "a server that sees the upload alone",
            facts.attacker == "outsider",
        ),
    ]
    columns: tables.Columns[tuple[str, str, str, bool]] = (
        tables.text("Attacker", lambda row: row[0]),
        tables.text("Knows", lambda row: row[1]),
        tables.text("Who that may be", lambda row: row[2]),
        tables.text("In this report", lambda row: decides[row[3]]),
    )
    return tables.table(
        "attackers",
        "Two attackers, one upload",
        rows,
        columns,
        note="Both know the weights, the labels and the prior. The informed one never knows less, so its numbers are "
        "the upper end of what leaks; an attacker who knows some of the others lies between.",
    )


@dataclass(frozen=True)
class _Part:
    """The samples of one client in one upload."""

    upload: int
    client: int
    rows: list[SampleRow]


_EVERY_CLIENT = (
    "Every client's samples are audited as if it were the one at stake; for each the others stand in for the data of "
    "clients that are not here."
)


def uploads_table(facts: Facts) -> Table:
    """Which samples leave together, and with several clients whose part each plays."""
    scheme = Scheme(facts)
    size = scheme.samples_per_client
    shown = columns.SHOWN if facts.num_samples > columns.MANY else len(scheme.uploads)
    parts = [
        _Part(upload, client, [facts.result.samples[place] for place in places[client * size : (client + 1) * size]])
        for upload, places in islice(scheme.uploads.items(), shown)
        for client in range(scheme.num_clients)
    ]
    left_out = (len(scheme.uploads) - shown) * scheme.num_clients
    several = scheme.num_clients > 1
    titles: tables.Columns[_Part] = (
        tables.text("Upload", lambda part: str(part.upload)),
        tables.text("Client", lambda part: str(part.client), shown=several),
        tables.count("Samples", lambda part: len(part.rows)),
        tables.text("Which", lambda part: _ids(part.rows)),
        tables.text("Classes", lambda part: ", ".join(dict.fromkeys(facts.class_name(row) for row in part.rows))),
    )
    return tables.table(
        "uploads",
        f"{count(len(scheme.uploads), 'upload')} of {count(scheme.upload_size, 'sample')}",
        parts,
        titles,
        note=" ".join(
            [
                *(_EVERY_CLIENT,) * several,
                *(f"The first {shown:,} of them; samples.parquet has the upload of every sample.",) * (left_out > 0),
            ]
        ),
        layout="compact",
        print_rows=_PRINTED_UPLOADS,
        left_out=max(0, left_out),
    )


def _ids(rows: list[SampleRow]) -> str:
    shown = ", ".join(short(row.id, 16) for row in rows[:_LISTED_IDS])
    return shown + (f" and {len(rows) - _LISTED_IDS:,} more" if len(rows) > _LISTED_IDS else "")


def _soteria_words(step: Soteria) -> str:
    layer = "the linear layer with the largest weight" if step.layer is None else f"the linear layer {step.layer}"
    return (
        f"of the weight of {layer} the columns of features scored below the {given(step.percentile)}th percentile "
        "are 0; its bias and all other layers are sent as they are, and an attacker who leaves that weight out isn't "
        "hindered. Which columns are 0 shows in what is sent, so the attacker is taken to know it."
    )
