"""What is audited, as options: a model's file, its data, and how both are read. Nothing here needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic.dataclasses import dataclass

from riskaudit.files import find_code, find_model, find_samples
from riskaudit.settings import CHECKED, INPUTS, OUTPUT, Count, Settings, option

if TYPE_CHECKING:
    from riskaudit.inputs import Checkpoint, Samples


def find_encoding(path: str) -> None:
    """Read the encoding of a table, only to see whether it can be.

    Raises:
        SettingsError: it can't.
    """
    from riskaudit.tables import read_encoding

    read_encoding(path)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ReadingOptions(Settings):
    """How data are read."""

    classes: str | None = option(
        None,
        "The model's classes in the order of its outputs, where the data name them: a,b,c or a file, one a line.",
        INPUTS,
        file=True,
    )
    scale: float | None = option(None, "Divide stored values by this (default: 255 for 8 bits, else 1).", INPUTS)
    split: str | None = option(None, "Which split of data that hold several: train, test...", INPUTS)
    encoding: str | None = option(
        None,
        "TOML file that says how the columns of a table become the model's inputs (riskaudit encoding infer proposes "
        "one).",
        INPUTS,
        file=True,
        check=find_encoding,
    )

    def samples(self, data: str, **reading: Any) -> Samples:
        """Samples that are read so; ``reading`` are further arguments of `load_samples`."""
        from riskaudit.inputs import class_list, load_samples

        classes = None if self.classes is None else class_list(self.classes)
        return load_samples(
            data, classes=classes, scale=self.scale, split=self.split, encoding=self.encoding, **reading
        )


@dataclass(frozen=True, config=CHECKED)
class LossOptions(Settings):
    """What the model is trained with."""

    loss: str = option(
        "cross-entropy", "cross-entropy, bce, mse, or file.py:function.", INPUTS, file=True, check=find_code
    )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ModelOptions(Settings):
    """Which model the weights belong to."""

    arch: str | None = option(
        None, "Architecture (see riskaudit list) or file.py:factory.", INPUTS, file=True, check=find_code
    )
    weights: str | None = option(
        None, "Which of several sets of weights in the file: a prefix of their names, such as state_dict_ema.", INPUTS
    )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TextOptions(Settings):
    """What a model of texts is trained for, and how long texts are."""

    task: Literal["classification", "causal-lm", "masked-lm"] | None = option(
        None, "What the client trains, of a Hugging Face folder (default: by the folder's own class).", INPUTS
    )
    base: str | None = option(
        None,
        "Folder of the model that adapters (a folder of PEFT's) belong to; nothing is fetched.",
        INPUTS,
        file=True,
        check=find_model,
    )
    max_tokens: Count | None = option(
        None,
        "Cut texts after so many tokens, as in training (default: refuse one longer than the model takes).",
        INPUTS,
    )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SampleOptions(ReadingOptions):
    """How samples are read and shown."""

    limit: int | None = option(None, "Audit at most this many samples.", INPUTS)
    plain_ids: bool = option(
        False, "Keep names of files and class folders as ids and class names; by default they are hashed.", OUTPUT
    )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SourceOptions(SampleOptions, ModelOptions, TextOptions):
    """Where samples come from, and how they and a checkpoint are read."""

    data: str = option(
        ...,
        "Samples: .npz, .pt, .safetensors, .csv, .parquet, idx-ubyte, a folder of images per class, texts (.txt, .csv, "
        ".jsonl, .parquet) for Hugging Face folders, or file.py:function.",
        INPUTS,
        recorded=False,
        check=find_samples,
    )
    mean: tuple[float, ...] | None = option(
        None,
        "Input mean, one number or one per channel (0.49,0.48,0.45), subtracted inside the audited model.",
        INPUTS,
        commas=True,
    )
    std: tuple[float, ...] | None = option(
        None, "Input standard deviation, likewise; goes with --mean.", INPUTS, commas=True
    )

    def load_from(self, checkpoint: str, loss: str, more: int = 0) -> tuple[Checkpoint, Samples]:
        """The model of a file and the samples, ``more`` of them beyond the limit where there are as many."""
        from riskaudit.inputs import class_list, load_checkpoint, load_loss

        model = load_checkpoint(
            checkpoint,
            arch=self.arch,
            weights=self.weights,
            mean=self.mean,
            std=self.std,
            task=self.task,
            base=self.base,
            classes=None if self.classes is None else class_list(self.classes),
        )
        # Where the weights don't tell the channels, several means do.
        channels = model.input_channels or (len(self.mean) if self.mean and len(self.mean) > 1 else None)
        samples = self.samples(
            self.data,
            channels=channels,
            limit=None if self.limit is None else self.limit + more,
            plain_ids=self.plain_ids,
            loss=load_loss(loss),
            num_classes=model.num_classes,
            text=model.text,
            max_tokens=self.max_tokens,
        )
        return model, samples
