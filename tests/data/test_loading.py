"""From a name to three sets, with the real reviews."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastattn.data import Splits, load, text_key
from fastattn.data.sources import from_hub_sets, packaged_reviews_path, read
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


def test_a_folder_without_training_file(tmp_path: Path) -> None:
    (tmp_path / "reviews.txt").touch()
    with pytest.raises(DataError, match=r"must hold a file train\{.csv.*got reviews.txt. Name"):
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
    with pytest.raises(DataError, match="data must be a file that exists"):
        read(name)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"the Hub cannot be reached. .* packaged IMDB reviews"):
        read("stanfordnlp/imdb")


class TestHubSets:
    """What the Hub gives, made here: the same classes, without the network."""

    @staticmethod
    def sets(**labels: list[int]) -> object:
        datasets = pytest.importorskip("datasets")
        features = datasets.Features(
            text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"])
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
        source = from_hub_sets("owner/imdb", sets, None, None)
        assert source.label_names == ["neg", "pos"]
        assert source.has_line_breaks
        assert source.train.labels == [0, 1]
        assert source.validation is None
        assert source.test is not None and source.test.labels == [1]

    def test_a_test_set_without_labels_is_named_and_left_out(self) -> None:
        sets = self.sets(train=[0, 1], validation=[1], test=[-1, -1])
        source = from_hub_sets("owner/benchmark", sets, None, None)
        assert source.test is None
        assert source.notes == ("the test split of owner/benchmark has no labels and is not used",)

    def test_no_training_set(self) -> None:
        with pytest.raises(DataError, match=r"must have a train split; got test. Choose another"):
            from_hub_sets("owner/odd", self.sets(test=[0, 1]), None, None)

    def test_no_such_column(self) -> None:
        with pytest.raises(DataError, match=r"of the train split of owner/odd; got 'sentence'"):
            from_hub_sets("owner/odd", self.sets(train=[0, 1]), "sentence", None)
