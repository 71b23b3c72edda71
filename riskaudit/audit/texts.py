"""What is particular to audits of texts: batches of one length, and the upload as it leaves for the real tokens."""

from __future__ import annotations

from itertools import groupby

from torch import nn

from riskaudit.errors import SettingsError
from riskaudit.inputs import Samples
from riskaudit.inputs.huggingface.sequences import TextModel
from riskaudit.release import Batch, ReleaseSpec


def refuse_for_texts(spec: ReleaseSpec, samples: Samples) -> None:
    """Refuse releases that texts have none of.

    Raises:
        SettingsError: which, and what to do.
    """
    if spec.transformation is not None:
        raise SettingsError(
            f"`release={spec}` transforms images, but {samples.name} holds texts; leave the transformation out"
        )


def of_one_length(samples: Samples, uploads: list[tuple[int, ...]]) -> list[list[int]]:
    """Numbers of uploads that follow each other and whose longest texts have the same number of tokens.

    Args:
        samples: all of them.
        uploads: positions of each upload's samples.
    """
    numbers = list(range(len(uploads)))
    lengths = samples.lengths
    if lengths is None:
        return [numbers] if numbers else []
    longest = [max(lengths[position] for position in upload) for upload in uploads]
    return [list(group) for _, group in groupby(numbers, key=longest.__getitem__)]


def text_model(model: nn.Module) -> TextModel | None:
    """The model of texts in a model that is audited; None where it is none."""
    return next((each for each in (model, getattr(model, "model", None)) if isinstance(each, TextModel)), None)


def token_batch(samples: Samples, batch: Batch, positions: list[int]) -> Batch:
    """A batch of the client's with numbers of tokens as its inputs, [U n, T]."""
    assert samples.tokens is not None
    ids = samples.tokens.ids[positions][:, : batch.inputs.shape[1]]
    return batch.with_inputs(ids.to(batch.inputs.device))
