"""What holds for every folder tree and every CSV file, however strange: nothing raises and no image gets lost."""

import csv
import io
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.layouts import FoundDataset, find_datasets, folder_problems
from datasets.survey import picture_of
from datasets.tables import TableError, labellings, match, read_table, use

FOLDERS = st.sampled_from([
    "train", "Valid", "test", "NORMAL", "normal", "SICK", "PNEUMONIA", "bacteria", "images", "masks", "patient1",
    "patient2", "study1_negative", "study2_positive", "ARM", "CHEST", "study", "older", "0", "1", "2", "eval",
    "holdout",
])  # fmt: skip
FILES = st.sampled_from([
    "1.png", "2.png", "3.JPG", "4.dcm", "1_mask.png", "2-seg 1.JPG", "notes.txt", ".hidden.png", "two\nlines.png",
])  # fmt: skip
CELLS = st.sampled_from(["NORMAL", "sick", "0", "1", "-1", "", "P1", "P2", 'a"b', "x,y", "é;", "nan", "2.0"])
TITLES = st.sampled_from(["file", "label", "diagnosis", "fractured", "hand", "patient_id", "view", "SICK"])


@st.composite
def csv_files(draw: st.DrawFn) -> bytes:
    """A table in one of the usual encodings and delimiters, sometimes with repeated rows, sometimes cut or dirty."""
    titles = ["image_id", *draw(st.lists(TITLES, max_size=4, unique=True))]
    names = st.sampled_from(
        ["1.png", "2", "3.jpg", "images/1.png", "NORMAL/2.png", "SICK\\4.dcm", "gone.png", "1_mask", ""]
    )
    values = draw(st.sampled_from([st.sampled_from("01"), st.sampled_from(["NORMAL", "sick"]), CELLS]))
    rows = [[draw(names), *draw(st.lists(values, max_size=5))] for _ in range(draw(st.integers(0, 6)))]
    buffer = io.StringIO()
    delimiter, quoting = draw(st.sampled_from(",;\t|")), draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    csv.writer(buffer, delimiter=delimiter, quoting=quoting).writerows([titles, *rows, *rows[:2]])
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"]))
    data = buffer.getvalue().encode(encoding)
    cut, junk = draw(st.integers(0, 3)), draw(st.sampled_from([b"", b"", b"", b"\x00\xff\xfe", b'"', b"\xc3"]))
    return data[: len(data) - cut] + junk


NAMES = st.sampled_from(["labels.csv", "other.csv", "train.csv", "test.csv"])
PATHS = st.builds(lambda folders, name: "/".join([*folders, name]), st.lists(FOLDERS, max_size=4), FILES)
TABLES = st.dictionaries(
    st.builds(lambda folders, name: "/".join([*folders, name]), st.lists(FOLDERS, max_size=2), NAMES),
    csv_files(),
    max_size=2,
)


def some(*names: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)


@st.composite
def plausible(draw: st.DrawFn) -> dict[str, bytes]:
    """The files of something like a dataset: parts in splits, classes and subfolders that repeat; often a table."""
    start = draw(st.sampled_from(["", "CHEST/", "CHEST/study/", "study/images/"]))
    splits = draw(some("", "train/", "test/", "Valid/", "eval/", "holdout/"))
    classes = draw(some("", "NORMAL/", "SICK/", "PNEUMONIA/", "PNEUMONIA/bacteria/", "PNEUMONIA/virus/", "0/", "1/"))
    kinds = draw(some("", "images/", "masks/", "patient1/", "patient1/study1_negative/", "patient2/study1_positive/"))
    files = draw(some("1.png", "2.png", "3.JPG", "4.dcm", "1_mask.png", "annotation-2.png"))
    paths = [f"{start}{a}{b}{c}{file}" for a in splits for b in classes for c in kinds for file in files]
    tables = draw(st.dictionaries(NAMES, csv_files(), max_size=2))
    return dict.fromkeys(paths, b"") | {start.removesuffix("images/") + name: tables[name] for name in tables}


TREES = st.builds(
    lambda planned, paths, tables: planned | dict.fromkeys(paths, b"") | tables,
    st.one_of(st.just({}), plausible()),
    st.lists(PATHS, unique=True, max_size=5),
    TABLES,
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@contextmanager
def made(*trees: dict[str, bytes]) -> Iterator[list[Path]]:
    """The trees on disk, each in the order of its dictionary, every file with the same time."""
    with tempfile.TemporaryDirectory() as folder:
        roots = [Path(folder, str(number), "root") for number in range(len(trees))]
        for root, tree in zip(roots, trees, strict=True):
            root.mkdir(parents=True)
            for name, data in tree.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                os.utime(path, ns=(10**9, 10**9))
        yield roots


def images(root: Path) -> set[Path]:
    found = (path for path in root.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".dcm"))
    return {path for path in found if path.is_file() and not path.name.startswith(".")}


def told(root: Path, found: list[FoundDataset]) -> tuple[set[Path], set[Path], set[Path]]:
    """Files, folders whose own images, and folders with all below that a problem names as not used."""
    problems = [(root, problem) for problem in folder_problems(root, found)]
    problems += [(dataset.path, problem) for dataset in found for problem in dataset.problems]
    files = ("no-row", "no-label", "label-conflict", "ambiguous-row", "unsafe-name")
    drawn = [base / problem.path for base, problem in problems if problem.code == "drawings"]
    return (
        {base / problem.path.replace("\\u000a", "\n") for base, problem in problems if problem.code in files}
        | {path for folder in drawn for path in folder.iterdir() if picture_of(path.name) is not None},
        {base / problem.path for base, problem in problems if problem.code in ("outside-classes", "no-classes")},
        {
            base / problem.path
            for base, problem in problems
            if problem.code == "no-dataset" or "in the folders below" in problem.reason
        },
    )


def repeated(dataset: FoundDataset) -> bool:
    return any(problem.code == "csv-conflict" for problem in dataset.problems)


def check_nothing_lost(root: Path, found: list[FoundDataset]) -> None:
    used = Counter(candidate.path for dataset in found for candidate in dataset.files())
    files, folders, trees = told(root, found)
    for path in images(root):
        inside = [dataset for dataset in found if path.is_relative_to(dataset.path)]
        mentioned = path in files or path.parent in folders or not trees.isdisjoint(path.parents)
        assert used[path] <= 1
        # Two rows that say different things of a file are told by their numbers and its name.
        assert used[path] or mentioned or any(map(repeated, inside)), path
        assert not (used[path] and (path.parent in folders or not trees.isdisjoint(path.parents))), path
    assert set(used) <= images(root)


@quick
@given(TREES)
def test_every_image_is_in_one_dataset_or_told_in_a_problem(tree):
    with made(tree) as (root,):
        found = find_datasets(root)

        check_nothing_lost(root, found)
        for dataset in found:
            assert {candidate.class_name for candidate in dataset.files()} <= set(dataset.classes)
            assert [folder.relative for folder in dataset.folders()] == list(
                dict.fromkeys(folder.relative for folder in dataset.folders())
            )


@quick
@given(TREES)
def test_every_answer_is_followed_and_has_as_many_images_as_its_preview(tree):
    with made(tree) as (root,):
        for dataset in find_datasets(root):
            for option in dataset.question.options if dataset.question else ():
                found = find_datasets(root, {dataset.name: option.value})
                (answered,) = (other for other in found if other.name == dataset.name)

                assert (answered.answer, answered.because) == (option.value, option.because)
                assert answered.question == dataset.question
                assert sum(option.counts.values()) == len(list(answered.files()))
                check_nothing_lost(root, found)


def comparable(dataset: FoundDataset) -> tuple[object, ...]:
    question = dataset.question
    options = question and [(option.value, option.label, option.because, option.counts) for option in question.options]
    files = sorted((file.relative, file.class_name, file.source_split, file.patient) for file in dataset.files())
    return (
        dataset.name, dataset.layout, dataset.because, dataset.classes, dataset.answer, question and question.text,
        options, files, sorted((problem.path, problem.reason) for problem in dataset.problems),
    )  # fmt: skip


@quick
@given(TREES, st.randoms(use_true_random=False))
def test_the_order_in_which_files_were_made_does_not_matter(tree, random):
    names = list(tree)
    random.shuffle(names)
    with made(tree, {name: tree[name] for name in names}) as (one, other):
        first, second = find_datasets(one), find_datasets(other)

        assert list(map(comparable, first)) == list(map(comparable, second))
        assert set(folder_problems(one, first)) == set(folder_problems(other, second))


@quick
@given(TREES, st.data())
def test_a_signature_changes_with_a_file_and_only_then(tree, data):
    with made(tree) as (root,):
        before = {dataset.name: dataset for dataset in find_datasets(root)}
        assert before == {dataset.name: dataset for dataset in find_datasets(root)}
        filled = {name: dataset for name, dataset in before.items() if list(dataset.files())}
        if not filled:
            return
        name = data.draw(st.sampled_from(sorted(filled)))
        touched = data.draw(st.sampled_from(sorted(file.path for file in filled[name].files())))

        os.utime(touched, ns=(2 * 10**9, 2 * 10**9))

        after = {dataset.name: dataset for dataset in find_datasets(root)}
        assert {other for other in after if after[other].signature != before[other].signature} == {name}
        old, new = ({folder.path: folder.signature for folder in found[name].folders()} for found in (before, after))
        assert {path for path in new if new[path] != old[path]} == {touched.parent}


@quick
@given(st.one_of(csv_files(), st.binary(max_size=300), st.text(max_size=200).map(lambda text: text.encode("utf-16"))))
def test_any_bytes_are_a_table_or_are_refused_in_words(content):
    with made({"labels.csv": content}) as (root,):
        try:
            table = read_table(root / "labels.csv", root)
        except TableError as error:
            assert str(error).isprintable()
            return
        found = match(table, [("1.png", ""), ("a/2.png", ""), ("3.png", "NORMAL")])
        for classes in ((), ("NORMAL", "SICK")):
            for labelling in labellings(table, classes):
                assert set(labelling.labels) <= {None, *labelling.classes}
                used = use(table, labelling, "csv", found, unsorted=True)
                assert sum(found.counts(used).values()) <= 3


@pytest.mark.parametrize("depth", [100, 400])
def test_folders_inside_each_other_without_end_are_told(tmp_path, depth):
    (tmp_path / "/".join("x" * depth)).mkdir(parents=True)

    assert any("folders lie inside each other" in problem.reason for problem in folder_problems(tmp_path, []))
