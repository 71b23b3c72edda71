"""Groups that a user names in a CSV."""

from __future__ import annotations

from pathlib import Path

import pytest

from riskaudit.errors import SamplesError
from riskaudit.studies.fairness.run import groups_of_ids, read_groups


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "groups.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_read(tmp_path: Path, start: str) -> None:
    path = write(tmp_path, f'{start}ID, group\r\n0,east\r\n\r\n1,"north, west"\r\n0,east\r\n')
    assert read_groups(path) == {"0": "east", "1": "north, west"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "to be id,group, found nothing"),
        ("0,east\n1,west\n", "to be id,group, found other words"),
        ("id,group,more\n", "to be id,group"),
        ("id,group\n", "at least one id"),
        ("id,group\n0\n", "an id and a group in row 2"),
        ("id,group\n0,\n", "an id and a group in row 2"),
        ("id,group\n0,a\n0,b\n", "the id in row 3 two groups"),
        (b"\xff\xfe\x00", "can't read groups.csv"),
        ('id,group\n"0,a\n', "can't read groups.csv"),
    ],
)
def test_refused_in_one_sentence(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(SamplesError) as caught:
        read_groups(write(tmp_path, content))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match=r"can't find .*nowhere\.csv"):
        read_groups(tmp_path / "nowhere.csv")


def test_ids_and_the_names_that_they_were_hashed_from() -> None:
    ids, names = ["aa", "bb", "cc", "dd"], ["x/1.png", "x/2.png", "y/2.png", "y/3.png"]
    groups = {"aa": "A", "x/2.png": "B", "2.png": "ambiguous", "3.png": "C", "zz": "D"}
    assert groups_of_ids(groups, ids, names) == {"aa": "A", "bb": "B", "dd": "C", "2.png": "ambiguous", "zz": "D"}


def test_no_id_fits() -> None:
    with pytest.raises(SamplesError, match=r"none of the 1 ids in g\.csv .*'aa'"):
        groups_of_ids({"1.png": "A"}, ["aa"], source="g.csv")
