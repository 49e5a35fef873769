"""From a name to three sets, with the real reviews."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastattn.data import Source, Splits, load, text_key
from fastattn.data.loading import load_packaged
from fastattn.data.sources import (
    PACKAGED_NAMES,
    check_one_meaning,
    packaged_reviews_path,
    read,
    rows_of_hub_sets,
)
from fastattn.data.tasks import Layout
from fastattn.errors import DataError

pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def imdb() -> Splits:
    try:
        packaged_reviews_path()
    except DataError:
        pytest.skip("the reviews are not installed")
    return load("imdb", train_size=2_000, validation_size=500, test_size=1_000)


def write_csv(path: Path, rows: list[tuple[str, object]]) -> str:
    import pandas as pd

    pd.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False)
    return str(path)


def test_the_packaged_reviews(imdb: Splits) -> None:
    assert imdb.label_names == ["negative", "positive"]
    assert imdb.report["train_rows"] == {
        "read": 25_000,
        "empty": 0,
        "duplicates": 98,
        "conflicting_labels": 0,
        "also_held_out": 0,
    }
    assert [len(part.texts) for part in imdb[:3]] == [2_000, 500, 1_000]
    for part in imdb[:3]:
        # 12,448 negative and 12,454 positive ones are left, so a set is not quite even.
        assert abs(sum(part.labels) - len(part.texts) / 2) <= 2


def test_no_review_is_in_two_sets(imdb: Splits) -> None:
    keys = [text_key(text) for part in imdb[:3] for text in part.texts]
    assert len(set(keys)) == len(keys)


def test_line_breaks_are_out_of_the_reviews(imdb: Splits) -> None:
    assert not any("<br" in text for part in imdb[:3] for text in part.texts)


@pytest.mark.parametrize("name", PACKAGED_NAMES)
def test_a_name_that_is_also_a_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name
    folder.mkdir()
    write_csv(folder / "train.csv", [(f"film {n}", n % 2) for n in range(40)])
    message = (
        rf"data must name one thing; got '{name}', which is packaged data and a folder here\. "
    )
    for take in (load, read):
        with pytest.raises(
            DataError, match=rf"{message}Write \./{name} for the folder; for the pa"
        ):
            take(name)
        take(f"./{name}")
    assert load(f"./{name}").report["train_rows"]["read"] == 40
    check_one_meaning(name, output=name)  # written to, and not read
    with pytest.raises(DataError, match=message):
        check_one_meaning(name, output="other")
    shutil.rmtree(folder)
    check_one_meaning(name)
    folder.touch()
    with pytest.raises(
        DataError, match=rf"which is packaged data and a file here\. Write \./{name}"
    ):
        load(name)


def test_without_a_name_the_packaged_reviews_are_meant(
    imdb: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imdb").mkdir()
    sizes: dict[str, Any] = {"train_size": 2_000, "validation_size": 500, "test_size": 1_000}
    assert load(**sizes) == load_packaged("imdb", **sizes) == imdb


def test_duplicates_and_conflicts_of_a_file(tmp_path: Path) -> None:
    rows: list[tuple[str, object]] = [(f"film {n}", n % 2) for n in range(40)]
    rows += [("Film 3", 1), ("  film 4", 1), ("", 0)]
    splits = load(write_csv(tmp_path / "a.csv", rows), test_size=8, validation_size=4)
    report = splits.report
    assert report["train_rows"] == {
        "read": 43,
        "empty": 1,
        "duplicates": 1,
        "conflicting_labels": 2,
        "also_held_out": 0,
    }
    assert report["sizes"] == {"train": 27, "validation": 4, "test": 8}


def test_texts_of_a_file_stay_as_they_are(tmp_path: Path) -> None:
    rows: list[tuple[str, object]] = [(f"film<br />{n}", n % 2) for n in range(10)]
    splits = load(write_csv(tmp_path / "a.csv", rows), test_size=2, validation_size=2)
    assert all("<br />" in text for text in splits.train.texts)


def test_a_folder_and_its_leaks(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [(f"film {n}", n % 2) for n in range(20)])
    write_csv(tmp_path / "dev.csv", [("film 2", 0), ("FILM 3", 1), ("film 51", 1)])
    write_csv(tmp_path / "test.csv", [("film 1", 1), ("film 2", 0), ("film 50", 0)])
    splits = load(str(tmp_path))
    assert splits.report["sizes"] == {"train": 17, "validation": 2, "test": 3}
    assert splits.report["train_rows"]["also_held_out"] == 3
    assert splits.report["validation_rows"]["also_held_out"] == 1
    keys = [text_key(text) for part in splits[:3] for text in part.texts]
    assert len(set(keys)) == len(keys)


def test_a_validation_set_of_which_nothing_is_left_is_told_of(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [(f"film {n}", n % 2) for n in range(20)])
    write_csv(tmp_path / "dev.csv", [("FILM 30", 0)])
    write_csv(tmp_path / "test.csv", [("film 30", 0), ("film 31", 1)])
    splits = load(tmp_path)
    assert splits.report["sizes"] == {"train": 20, "validation": 0, "test": 2}
    assert splits.report["notes"] == [
        "the validation set is not used: every row of it is in the test set, too"
    ]


def test_a_class_that_only_the_test_set_has_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [(f"film {n}", n % 2) for n in range(20)])
    write_csv(tmp_path / "test.csv", [("film 30", "new")])
    with pytest.raises(DataError, match=r"every class; got no row of class 'new'. Give the train"):
        load(str(tmp_path))


def test_a_path_is_as_good_as_its_name(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", [(f"film {n}", n % 2) for n in range(20)])
    assert load(Path(file)).report == load(file).report
    with pytest.raises(DataError, match=r"must be a file or folder that exists.*; got '.*xxx'"):
        load(tmp_path / ("x" * 300))


def test_a_folder_without_training_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "test.csv", [("film 1", 1)])
    with pytest.raises(DataError, match=r"must hold a train file or split; got test. Name"):
        load(str(tmp_path))


def test_a_folder_with_two_training_files(tmp_path: Path) -> None:
    for name in ("train.csv", "train.tsv"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"at most one train file; got train.csv, train.tsv"):
        load(str(tmp_path))


def test_columns_are_not_for_the_packaged_reviews() -> None:
    with pytest.raises(DataError, match=r"must be left out for the packaged IMDB reviews; got 'x'"):
        read("imdb", text_column="x")


def test_sizes_are_checked_before_reading() -> None:
    with pytest.raises(DataError, match="test_size must be"):
        load("no-such-file.csv", test_size=0)


@pytest.mark.parametrize("name", ["/no/such", "./none", "~/none", "a/b/c", "none.parquet"])
def test_what_looks_like_a_path_is_no_hub_id(name: str) -> None:
    with pytest.raises(DataError, match="data must be a file or folder that exists"):
        read(name)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"the Hub cannot be reached. .* packaged IMDB reviews"):
        read("stanfordnlp/imdb")


class TestHubSets:
    """What the Hub gives, made here: the same classes, without the network."""

    @staticmethod
    def source(name: str, sets: Any, **columns: str) -> Source:
        return rows_of_hub_sets("classification", name, sets, Layout(columns=columns))

    @staticmethod
    def sets(names: Sequence[str] = ("neg", "pos"), **labels: list[int]) -> Any:
        datasets = pytest.importorskip("datasets")
        features = datasets.Features(
            text=datasets.Value("string"), label=datasets.ClassLabel(names=list(names))
        )
        return datasets.DatasetDict(
            {
                name: datasets.Dataset.from_dict(
                    {"text": [f"{name} {n}<br />" for n in range(len(values))], "label": values},
                    features=features,
                )
                for name, values in labels.items()
            }
        )

    def test_names_sets_and_line_breaks(self) -> None:
        sets = self.sets(train=[0, 1], test=[1], unsupervised=[-1, -1])
        source = self.source("owner/imdb", sets)
        assert source.label_names == ["neg", "pos"]
        assert source.has_line_breaks
        assert [row["label"] for row in source.sets["train"]] == ["neg", "pos"]
        assert [row["label"] for row in source.sets["test"]] == ["pos"]
        assert source.sets.keys() == {"train", "test"}

    def test_classes_are_in_the_order_of_the_source(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sets = self.sets(["world", "business"], train=[0, 1] * 10)
        monkeypatch.setattr("fastattn.data.sources.download", lambda name, config: sets)
        splits = load("owner/news")
        assert splits.label_names == ["world", "business"]
        numbers = [int(text.split("<")[0][6:]) for text in splits.train.texts]
        assert splits.train.labels == [number % 2 for number in numbers]

    def test_a_test_set_without_labels_is_named_and_left_out(self) -> None:
        sets = self.sets(train=[0, 1], validation=[1], test=[-1, -1])
        source = self.source("owner/benchmark", sets)
        assert source.sets.keys() == {"train", "validation"}
        assert source.notes == ["the test set has no labels and is not used"]

    def test_no_training_set(self) -> None:
        with pytest.raises(DataError, match=r"must have a train split with rows; got test. Choose"):
            self.source("owner/odd", self.sets(test=[0, 1]))

    def test_no_such_column(self) -> None:
        with pytest.raises(DataError, match=r"owner/odd\[train\], row 1: .* field 'sentence'"):
            self.source("owner/odd", self.sets(train=[0, 1]), text="sentence")


def test_nothing_is_left_to_train_on(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "a.csv", [("one text", 0), ("one text", 1)] * 3)
    with pytest.raises(DataError, match=r"the training set must hold a row; got none"):
        load(file)


def test_labels_that_differ_by_case_are_told_of(tmp_path: Path) -> None:
    rows: list[tuple[str, object]] = [(f"film {n}", ("Good", "good")[n % 2]) for n in range(20)]
    notes = load(write_csv(tmp_path / "a.csv", rows)).report["notes"]
    assert notes == ["labels that differ by letter case alone are different classes: Good, good"]
