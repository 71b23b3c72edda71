"""Attestations say as declared, not as declared, or that they can't tell, each where it is so."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch
from attestation_cases import CLIP, DECLARED, SHAPES, STD, clean_update, network, noisy, statuses
from safetensors.torch import save_file
from scan_cases import CHECKPOINT, demo_model

from riskaudit import attest
from riskaudit.errors import CheckpointError, GuardError, ReleaseError, ResultError, SettingsError
from riskaudit.release import Noise
from riskaudit.results.attestation import Attestation


def test_what_is_declared_is_as_declared() -> None:
    clean = clean_update()
    result = attest(noisy(clean), DECLARED, received=network(), clean=clean)
    assert result.outcome == "as_declared"
    assert set(statuses(result).values()) == {"as_declared"}
    assert result.findings == []
    assert sum(test.false_alarm for test in result.tests) == pytest.approx(result.false_alarm)


def test_one_vector_is_enough_where_the_noise_is_large() -> None:
    result = attest(noisy(clean_update()), DECLARED)
    assert result.outcome == "as_declared"
    assert {"noisy-norm", "noise-size"} <= {test.id for test in result.tests if (test.power or 0) > 0.99}


def test_one_vector_can_not_tell_small_noise() -> None:
    result = attest(noisy(clean_update(), Noise("gaussian", 0.002)), f"clip:{CLIP},gaussian:0.002")
    assert result.outcome == "could_not_tell"
    assert {test.claim for test in result.undecided} == {"noise"}


def test_noise_without_a_clip_can_not_be_told_from_one_vector() -> None:
    result = attest(noisy(clean_update()), f"gaussian:{STD}")
    assert result.outcome == "could_not_tell"
    assert {test.power for test in result.tests if test.claim == "noise"} == {None}


class TestWhatWouldTell:
    """Where it can't be told, the result says what to hand over, and with that it can."""

    small = Noise("gaussian", 0.002)
    declared = f"clip:{CLIP},gaussian:0.002"

    def update(self) -> dict[str, torch.Tensor]:
        return noisy(clean_update(), self.small)

    def test_the_clean_update_first(self) -> None:
        result = attest(self.update(), self.declared)
        assert [words.split(",")[0] for words in result.would_tell] == [
            "`clean`",
            "`received` and `loss=cross-entropy`",
        ]
        assert result.verdict.endswith("noise; give `clean`, the update as it was right before its noise was added")
        told = attest(self.update(), self.declared, clean=clean_update())
        assert (told.outcome, told.would_tell) == ("as_declared", [])

    @pytest.mark.parametrize(
        ("given", "lacking"),
        [
            ({"received": network()}, "`loss=cross-entropy`"),
            ({"loss": "cross-entropy"}, "`received`"),
            ({"loss": "cross-entropy", "received": network().state_dict()}, "`arch`"),
        ],
        ids=["loss", "received", "arch"],
    )
    def test_what_the_sums_over_classes_lack(self, given, lacking) -> None:
        result = attest(self.update(), self.declared, **given)
        assert result.would_tell[1].startswith(f"{lacking}, where")

    def test_with_model_and_loss_it_is_told(self) -> None:
        result = attest(self.update(), self.declared, received=network(), loss="cross-entropy")
        assert (result.outcome, result.would_tell) == ("as_declared", [])

    def test_the_clip_norm_where_there_is_none(self) -> None:
        result = attest(noisy(clean_update()), f"gaussian:{STD}")
        assert result.would_tell[-1].startswith("the clip norm in `declared`")
        assert attest(noisy(clean_update()), DECLARED).would_tell == []

    @pytest.mark.parametrize("declared", [f"clip:{CLIP},laplace:0.002", f"clip:{CLIP},prune:0.5,gaussian:0.002"])
    def test_sums_over_classes_are_not_asked_for_where_they_tell_nothing(self, declared) -> None:
        result = attest(self.update(), declared, received=network())
        assert [words.split(",")[0] for words in result.would_tell] == ["`clean`"]

    def test_a_mask_asks_for_the_model(self) -> None:
        result = attest(self.update(), "mask:0.5,gaussian:0.002")
        assert [words.split(",")[0] for words in result.would_tell] == ["`received`"]

    def test_what_is_refused_asks_for_nothing(self) -> None:
        assert attest(noisy(clean_update(), scale=0.0), DECLARED).would_tell == []


@pytest.mark.parametrize("scale", [0.0, 0.5])
@pytest.mark.parametrize("law", ["gaussian", "laplace"])
@pytest.mark.parametrize("with_clean", [True, False], ids=["clean", "alone"])
def test_missing_and_half_noise_is_noticed(scale, law, with_clean) -> None:
    noise, clean = Noise(law, STD), clean_update()
    declared = f"clip:{CLIP},{law}:{STD}"
    result = attest(noisy(clean, noise, scale), declared, clean=clean if with_clean else None)
    assert result.outcome == "not_as_declared"
    assert {test.claim for test in result.rejections} == {"noise"}


@pytest.mark.parametrize("with_clean", [True, False], ids=["clean", "alone"])
def test_a_tensor_without_noise_is_named(with_clean) -> None:
    clean = {**clean_update(), "1.bias": torch.zeros(40)}
    update = {**noisy(clean), "1.bias": clean["1.bias"]}
    result = attest(update, DECLARED, clean=clean if with_clean else None)
    assert {test.tensor for test in result.rejections} == {"1.bias"}


def test_an_unclipped_update_is_noticed() -> None:
    clean = clean_update(clip=3.0)
    alone, compared = attest(noisy(clean), DECLARED), attest(noisy(clean), DECLARED, clean=clean)
    assert [test.id for test in alone.rejections] == ["noisy-norm"]
    assert [test.id for test in compared.rejections] == ["clean-norm"]
    assert [test.id for test in attest(clean, f"clip:{CLIP}").rejections] == ["norm"]
    assert attest(clean, "clip:3").outcome == "as_declared"


def test_more_than_the_clean_update_is_noticed() -> None:
    clean = clean_update()
    tripled = {name: 3 * value for name, value in clean.items()}
    assert "clean-share" in [test.id for test in attest(noisy(tripled), DECLARED, clean=clean).rejections]


def test_a_small_update_below_the_noise_is_as_declared_where_no_norm_is() -> None:
    clean = clean_update(clip=0.05)
    assert attest(noisy(clean), f"gaussian:{STD}", clean=clean).outcome == "as_declared"
    assert attest(noisy(clean), DECLARED, clean=clean).outcome == "as_declared"


def test_the_wrong_law_is_noticed() -> None:
    clean = {name: torch.zeros(shape) for name, shape in {**SHAPES, "more": (4000,)}.items()}
    update = noisy(clean, Noise("laplace", STD / 2**0.5))
    assert [test.id for test in attest(update, DECLARED, clean=clean).rejections] == ["residual-law"]


def test_without_noise_the_clean_update_is_what_leaves() -> None:
    clean = clean_update()
    assert attest(clean, "gradient", clean=clean).outcome == "as_declared"
    changed = {**clean, "3.bias": clean["3.bias"] + 1e-3}
    assert [test.id for test in attest(changed, "gradient", clean=clean).rejections] == ["residual"]


def test_sums_over_classes_show_noise_that_nothing_else_does() -> None:
    clean, std = clean_update(), 0.002
    declared = f"clip:{CLIP},gaussian:{std}"
    right = attest(noisy(clean, Noise("gaussian", std)), declared, received=network(), loss="cross-entropy")
    assert (right.outcome, statuses(right)["class-sums"]) == ("as_declared", "as_declared")
    wrong = attest(clean, declared, received=network(), loss="cross-entropy")
    assert statuses(wrong)["class-sums"] == "not_as_declared"


def test_masked_entries_hold_noise_alone_and_then_nothing() -> None:
    clean = clean_update()
    flat = torch.cat([value.flatten() for value in clean.values()])
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(len(flat))
    mask[order[: round(0.5 * len(flat))]] = 0
    pieces = dict(zip(clean, mask.split([value.numel() for value in clean.values()]), strict=True))
    kept = {name: value * pieces[name].reshape(value.shape) for name, value in clean.items()}
    before = attest(noisy(kept), f"clip:{CLIP},mask:0.5,gaussian:{STD}", received=network())
    assert statuses(before)["masked-entries"] == "as_declared"
    half = attest(noisy(kept, scale=0.5), f"clip:{CLIP},mask:0.5,gaussian:{STD}", received=network())
    assert statuses(half)["masked-entries"] == "not_as_declared"
    after = {name: value * pieces[name].reshape(value.shape) for name, value in noisy(kept).items()}
    forgotten = attest(noisy(kept), f"{DECLARED},mask:0.5", received=network())
    assert [test.id for test in forgotten.rejections] == ["masked-out"]
    assert attest(after, f"{DECLARED},mask:0.5", received=network()).outcome == "as_declared"
    unknown = attest(after, f"{DECLARED},mask:0.5")
    assert (unknown.outcome, statuses(unknown)["noise-size"]) == ("could_not_tell", "could_not_tell")


@pytest.mark.parametrize("kind", ["foreign", "missing", "shape", "dtype", "integer", "nan"])
def test_what_may_not_leave_is_noticed(kind) -> None:
    update = clean_update()
    expected = {"foreign": "names", "missing": "names", "shape": "shapes", "dtype": "dtypes"}.get(kind, "finite")
    if kind == "foreign":
        update["optimizer.exp_avg"] = torch.zeros(3)
    elif kind == "missing":
        del update["1.bias"]
    else:
        bias = update["3.bias"]
        changed = {"shape": bias[None], "dtype": bias.double(), "integer": bias.int(), "nan": bias * torch.nan}
        update["3.bias"] = changed[kind]
    result = attest(update, "gradient", received=network())
    assert result.outcome == "not_as_declared"
    assert expected in [test.id for test in result.rejections]


def test_frozen_parameters_and_those_that_are_not_shared_may_not_leave() -> None:
    model, update = network(), clean_update()
    model[1].requires_grad_(False)
    assert [test.id for test in attest(update, "gradient", received=model).rejections] == ["names"]
    head = {name: value for name, value in update.items() if name.startswith("3.")}
    assert attest(head, "gradient", received=model).outcome == "as_declared"
    assert attest(head, "share:3.*", received=network()).outcome == "as_declared"
    assert [test.id for test in attest(update, "share:3.*", received=network()).rejections] == ["names"]


def test_whatever_else_lies_in_a_file_is_noticed(tmp_path) -> None:
    update = clean_update()
    torch.save({**update, "notes": "the patient's name"}, tmp_path / "extra.pt")
    torch.save({**update, "3.bias": torch.zeros(1000)[:4]}, tmp_path / "view.pt")
    save_file(update, tmp_path / "metadata.safetensors", metadata={"format": "pt", "hint": "the patient's name"})
    for name in ("extra.pt", "view.pt", "metadata.safetensors"):
        result = attest(tmp_path / name, "gradient", received=network())
        assert [test.id for test in result.rejections] == ["extras"], name
        assert "patient" not in result.to_json()


@pytest.mark.parametrize("member", ["archive/data/999", "archive/notes.txt"])
def test_members_of_an_archive_that_nothing_refers_to_are_noticed(tmp_path, member) -> None:
    torch.save(clean_update(), tmp_path / "update.pt")
    with zipfile.ZipFile(tmp_path / "update.pt", "a") as archive:
        archive.writestr(member.replace("archive", "update"), b"the patient's name")
    assert [test.id for test in attest(tmp_path / "update.pt", "gradient").rejections] == ["extras"]


def test_tied_weights_and_optimizers_in_a_file(tmp_path) -> None:
    update = clean_update()
    torch.save({**update, "tied": update["1.weight"]}, tmp_path / "tied.pt")
    assert attest(tmp_path / "tied.pt", "gradient").outcome == "as_declared"
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 64)).sum().backward()
    optimizer.step()
    torch.save({"update": update, "optimizer": optimizer.state_dict()}, tmp_path / "both.pt")
    result = attest(tmp_path / "both.pt", "gradient", received=model)
    assert {"names", "extras"} <= {test.id for test in result.rejections}


def test_every_format_is_read(tmp_path) -> None:
    update = clean_update()
    torch.save(update, tmp_path / "update.pt")
    torch.save({"gradient": update}, tmp_path / "nested.pt")
    save_file(update, tmp_path / "update.safetensors")
    arrays = {name: value.numpy() for name, value in update.items()}
    np.savez(tmp_path / "update.npz", **arrays)
    np.savez(tmp_path / "row.npz", *arrays.values())
    for name in ("update.pt", "nested.pt", "update.safetensors", "update.npz", "row.npz"):
        result = attest(tmp_path / name, "clip:1.01", received=network())
        assert (name, result.outcome) == (name, "as_declared")
        assert result.update.num_entries == sum(value.numel() for value in update.values())


def test_a_clip_after_the_noise_bounds_all_of_it() -> None:
    result = attest(noisy(clean_update()), f"gaussian:{STD},clip:{CLIP}")
    assert statuses(result)["norm"] == "not_as_declared"
    assert statuses(result)["noise-size"] == "could_not_tell"
    assert [finding.id for finding in result.errors] == ["clip-after-noise"]


def test_bfloat16_is_no_deviation() -> None:
    clean = clean_update()
    update = {name: value.bfloat16() for name, value in noisy(clean).items()}
    assert attest(update, DECLARED, clean=clean).outcome == "as_declared"
    lost = {name: (100 * value).bfloat16() for name, value in noisy(clean, scale=0.01).items()}
    assert "noise-below-rounding" in [finding.id for finding in attest(lost, "gaussian:0.0005").findings]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"declared": "clip:1,nonsense:3"}, ReleaseError),
        ({"declared": "share:nothing.*", "received": network()}, ReleaseError),
        ({"false_alarm": 0.5}, SettingsError),
        ({"sensitivity": float("nan")}, SettingsError),
        ({"loss": "mse"}, SettingsError),
        ({"clean": {"3.bias": torch.zeros(4)}}, SettingsError),
        ({"update": network()}, GuardError),
        ({"update": {"name": "text"}}, GuardError),
        ({"update": "missing.pt"}, CheckpointError),
    ],
)
def test_what_can_not_be_attested_is_refused(options, error) -> None:
    given = {"update": clean_update(), "declared": "gradient", **options}
    with pytest.raises(error):
        attest(given.pop("update"), given.pop("declared"), **given)


@pytest.mark.parametrize(
    "update", [{"w": torch.ones(3, dtype=torch.int64)}, {"w": torch.zeros(0)}], ids=["int", "none"]
)
def test_nothing_is_as_declared_of_which_nothing_was_tested(update) -> None:
    result = attest(update, DECLARED)
    assert result.outcome != "as_declared"
    assert statuses(result)["noise-size"] == "could_not_tell"


def test_a_received_file_says_what_may_leave_in_which_dtype(tmp_path) -> None:
    torch.save(demo_model().half().state_dict(), tmp_path / "half.pt")
    update = {name: torch.zeros_like(value) for name, value in demo_model().named_parameters()}
    for path, failing in ((CHECKPOINT, []), (tmp_path / "half.pt", ["dtypes"])):
        result = attest(update, "gradient", received=path, arch="lenet")
        assert [test.id for test in result.rejections] == failing
        assert result.received.sha256 is not None


def test_names_are_shown_without_control_characters() -> None:
    result = attest({"a\x1b[2J\u202eb": torch.zeros(50), **clean_update()}, DECLARED, received=network())
    assert result.rejections
    assert all(test.reason.isprintable() and (test.tensor or "").isprintable() for test in result.tests)


def test_hostile_files_are_refused(tmp_path) -> None:
    for name, content in (("a.pt", b"cos\nsystem\n(S'x'\ntR."), ("b.safetensors", b"\xff" * 9), ("c.npz", b"PK\3\4")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            attest(tmp_path / name, "gradient")


def test_a_file_is_read_again_and_not_believed_against_its_tests(tmp_path) -> None:
    result = attest(clean_update(), "clip:0.5")
    result.save(tmp_path / "attestation.json")
    assert Attestation.load(tmp_path / "attestation.json") == result
    edited = result.to_json().replace('"outcome": "not_as_declared"', '"outcome": "as_declared"')
    with pytest.raises(ResultError, match="against its own tests"):
        Attestation.from_json(edited)
    with pytest.raises(ResultError, match="schema_version"):
        Attestation.from_json("{}")
