"""CSV files that describe images: every usual form is read, what could be the label is told, what is wrong is said."""

import tracemalloc
from array import array
from pathlib import Path

import pytest

from datasets.tables import Labelling, Source, Table, TableError, check, labellings, match, read_parts, read_table, use


def table(folder: Path, text: str | bytes) -> Table:
    path = folder / "labels.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_table(path, folder)


def values(found: Table, *classes: str) -> list[str]:
    return [labelling.value for labelling in labellings(found, classes)]


def labels(found: Table, labelling: Labelling) -> dict[str, str | None]:
    return {key: labelling.labels[found.combination_of[index]] for key, index in found.keys.items()}


PLAIN = "file,label\na.png,ill\nb.png,wéll\n"
SOLID = {"a": "ill", "b": "wéll"}


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.encode("utf-16-le"),
        PLAIN.encode("utf-16-be"),
        PLAIN.encode("latin-1"),
        PLAIN.replace(",", ";").encode("utf-16"),
        PLAIN.replace(",", "\t").replace("\n", "\r\n").encode(),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace(",", "|").encode(),
        ("sep=;\n" + PLAIN.replace(",", ";")).encode(),
        ("\n\n" + PLAIN + "\n,\n").encode(),
        b'"file","label"\r\n"a.png","ill"\r\n"b.png","w\xc3\xa9ll"\r\n',
        b'" File Name ; of image";Label\n'.replace(b" ; of image", b"") + "a.png;ill\nb.png;wéll\n".encode(),
    ],
)
def test_encodings_delimiters_and_quotes_make_no_difference(tmp_path, content):
    found = table(tmp_path, content)
    (labelling,) = labellings(found, ())

    assert labels(found, labelling) == SOLID


def test_a_delimiter_inside_quotes_of_the_header_does_not_count(tmp_path):
    found = table(tmp_path, 'file;"label";"a,b,c,d"\na.png;ill;x\nb.png;well;y\n')

    assert found.titles == ["file", "label", "a,b,c,d"]


def test_a_file_without_a_header_loses_no_row(tmp_path):
    found = table(tmp_path, "a.png,ill\nb.png,well\n")
    (labelling,) = labellings(found, ())

    assert labels(found, labelling) == {"a": "ill", "b": "well"}
    assert labelling.value == "column 2"


def test_a_column_of_image_names_is_found_whatever_its_title(tmp_path):
    assert table(tmp_path, "X-ray,label\na.png,ill\nb.png,well\n").file_column == 0


@pytest.mark.parametrize(
    ("name", "found"),
    [("a.png", True), ("x/y/a.png", True), ("A.PNG", True), ("a.dcm", True), ("b.png", True), ("c.png", False)],
)
def test_a_file_is_found_by_its_path_or_its_name_with_or_without_extension(tmp_path, name, found):
    rows = table(tmp_path, f"file,label\na,ill\n{tmp_path.name}\\b.png,well\n./x/c.png,ill\n")

    assert (rows.find(name) is not None) == found


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no rows"),
        ("file,label\n", "no rows"),
        ("colour,weight\nred,1\n", "No column names the image files (columns: colour, weight)."),
        ("file\n" + "a" * 200_000, "cannot be parsed"),
        ("file" + ",x" * 1001 + "\na\n", "more than 1000 columns"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(tmp_path, content, reason):
    with pytest.raises(TableError) as refused:
        table(tmp_path, content)

    assert reason in str(refused.value)


def test_a_link_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "labels.csv")
    for name in ("link.csv", "gone.csv"):
        with pytest.raises(TableError, match="link or not a regular file"):
            read_table(tmp_path / name, tmp_path)


# --- Which column is the label


def test_the_column_that_is_called_label_leaves_nothing_to_ask(tmp_path):
    assert values(table(tmp_path, "file,age,hardware,label\na,9,0,ill\nb,8,1,well\n")) == ["label"]


def test_two_columns_that_are_called_like_a_label_are_two_ways(tmp_path):
    assert values(table(tmp_path, "file,grade,diagnosis\na,1,ill\nb,1,well\nc,2,ill\n")) == ["diagnosis", "grade"]


def test_a_number_and_a_name_for_each_class_are_one_and_the_name_is_taken(tmp_path):
    assert values(table(tmp_path, "file,label,class\na,0,well\nb,1,ill\n")) == ["class"]


def test_columns_of_which_one_is_set_in_every_row_are_the_classes(tmp_path):
    found = table(tmp_path, "file,normal,viral,bacterial\na,1,0,0\nb,0,1,0\nc,0,0,1\n")
    (labelling,) = labellings(found, ())

    assert labels(found, labelling) == {"a": "normal", "b": "viral", "c": "bacterial"}


def test_a_column_that_says_the_same_of_every_file_is_no_label(tmp_path):
    found = table(tmp_path, "Image Index,Finding Labels,Follow-up #\na.png,Mass,0\nb.png,No Finding,0\n")

    assert values(found) == ["Finding Labels"]


def test_other_columns_of_0_and_1_are_one_way_each_with_findings_first(tmp_path):
    found = table(tmp_path, "file,hand,hardware,fractured,nodule\na,1,1,1,0\nb,0,0,1,1\nc,0,0,0,0\n")

    assert values(found) == ["fractured", "nodule", "hand", "hardware"]


def test_an_uncertain_finding_is_no_label(tmp_path):
    found = table(tmp_path, "file,effusion\na,1.0\nb,-1.0\nc,0.0\nd,\n")
    (labelling,) = labellings(found, ())

    assert labels(found, labelling) == {"a": "effusion", "b": None, "c": "not effusion", "d": "not effusion"}


def test_where_nothing_is_called_a_label_columns_of_few_values_are_offered_and_sex_and_view_are_not(tmp_path):
    found = table(tmp_path, "file,sex,view,severity\na,M,AP,mild\nb,F,PA,severe\n")

    assert values(found) == ["severity"]


def test_a_column_with_hundreds_of_values_is_not_the_class_and_that_is_told(tmp_path):
    rows = "".join(f"{number}.png,finding {number},{number % 2}\n" for number in range(300))
    found = table(tmp_path, "file,label,ill\n" + rows)

    assert values(found) == ["ill"]
    assert [problem.code for problem in found.problems] == ["label-column"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("file,finding,fractured\na,x,1\nb,y,0\n", ["fractured"]),
        ("file,finding,diagnosis\na,x,Fractured\nb,y,not-fractured\n", ["diagnosis"]),
        ("file,finding\na,x\nb,y\n", ["finding"]),
        ("file,age\na,1\nb,9\n", []),
    ],
)
def test_the_column_that_speaks_of_the_class_folders_comes_before_others(tmp_path, text, wanted):
    assert values(table(tmp_path, text), "Fractured", "not_fractured") == wanted


# --- Rows and files


def test_each_row_without_a_file_and_each_repeated_one_is_told(tmp_path):
    found = table(tmp_path, "file,label\na.png,ill\nb.png,well\nB.PNG,ill\na.png,ill\nc.png,ill\n,ill\n")
    files = [("a.png", ""), ("b.png", ""), ("d.png", "")]
    rows = match(found, files)
    used = use(found, labellings(found, ())[0], "csv", rows, unsorted=True)

    assert [(problem.path, problem.reason) for problem in check(used, rows, lambda: files)] == [
        ("labels.csv", "Row 7 names no file."),
        ("labels.csv", "Rows 3 and 4 say different things of B.PNG; left out."),
        ("d.png", "labels.csv has no row for this file; left out."),
        ("labels.csv", "Row 6: there is no file c.png."),
    ]
    assert rows.counts(used) == {"ill": 1}
    assert [used.apply(*file) for file in files] == [("ill", None), None, None]


def test_rows_of_one_file_that_differ_in_other_columns_alone_are_no_conflict(tmp_path):
    found = table(tmp_path, "file,view,label\na.png,AP,ill\na.png,PA,ill\n")
    rows = match(found, [("a.png", "")])

    assert use(found, labellings(found, ())[0], "csv", rows, unsorted=True).left_out == frozenset()


def test_two_rows_with_different_patients_for_a_file_are_a_conflict(tmp_path):
    found = table(tmp_path, "file,label,patient\na.png,ill,P1\na.png,ill,P2\n")
    rows = match(found, [("a.png", "")])

    assert use(found, labellings(found, ())[0], "csv", rows, unsorted=True).left_out == {0}


def test_a_row_costs_a_few_hundred_bytes(tmp_path):
    rows = 20_000
    lines = (f"images/{number:08d}.png,{number % 2},P{number // 3}\n" for number in range(rows))
    (tmp_path / "labels.csv").write_text("file,ill,patient\n" + "".join(lines))

    tracemalloc.start()
    try:
        found = read_table(tmp_path / "labels.csv", tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(found.keys) == rows and isinstance(found.numbers, array)
    assert peak / rows < 400


# --- Columns of which one is set: mistakes in single rows


def one_hot(good: int, *bad: str) -> str:
    columns = ("1,0,0", "0,1,0", "0,0,1")
    rows = [columns[number % 3] for number in range(good)] + list(bad)
    return "file,normal,viral,bacterial\n" + "".join(f"{number}.png,{row}\n" for number, row in enumerate(rows))


def problems_of(
    found: Table, labelling: Labelling, *files: tuple[str, str], trust: str = "csv"
) -> list[tuple[str, str]]:
    rows = match(found, files)
    used = use(found, labelling, trust, rows, unsorted=trust == "csv")
    return [(problem.path, problem.reason) for problem in check(used, rows, lambda: files) if problem.code != "no-file"]


@pytest.mark.parametrize("bad", ["1,1,0", "0,0,0", "0,1,x", "?,?,?", "2,0,0", "-1,0,0", ""])
def test_a_row_that_does_not_set_exactly_one_column_is_told_and_the_others_are_used(tmp_path, bad):
    found = table(tmp_path, one_hot(39, bad))
    (labelling,) = labellings(found, ())

    assert labelling.classes == ("bacterial", "normal", "viral")
    assert labels(found, labelling)["39"] is None
    assert problems_of(found, labelling, ("38.png", ""), ("39.png", "")) == [
        ("39.png", "Row 41 does not set exactly one of normal, viral, bacterial to 1; left out.")
    ]


def test_when_one_row_in_ten_sets_no_column_it_is_asked_and_mistakes_are_suggested(tmp_path):
    found = table(tmp_path, one_hot(9, "0,0,0"))

    assert values(found) == ["normal, viral, bacterial", "normal", "viral", "bacterial"]


def test_findings_of_which_an_image_has_any_number_are_no_classes(tmp_path):
    found = table(tmp_path, one_hot(6, "1,1,0", "0,0,0"))

    assert values(found) == ["normal", "viral", "bacterial"]


def test_a_column_of_grades_beside_one_hot_columns_is_none_of_them(tmp_path):
    rows = "".join(f"{number},{number % 2},{1 - number % 2},{number % 5}\n" for number in range(20))

    assert values(table(tmp_path, "file,ill,well,fold\n" + rows)) == ["ill, well"]


def test_in_a_class_folder_a_row_that_sets_two_columns_is_told_and_the_folder_counts(tmp_path):
    found = table(tmp_path, one_hot(9, "1,1,0", "1,0,y"))
    (labelling,) = labellings(found, ("bacterial", "normal", "viral"))

    assert problems_of(
        found, labelling, ("0.png", "normal"), ("9.png", "viral"), ("10.png", "normal"), trust="both"
    ) == [
        ("9.png", "Row 11 does not set exactly one of normal, viral, bacterial to 1; the folder's class is used."),
        ("10.png", "Row 12 does not set exactly one of normal, viral, bacterial to 1; the folder's class is used."),
    ]


# --- Folders and rows that disagree


@pytest.mark.parametrize(
    ("trust", "outcome"),
    [("both", "left out"), ("folder", "the folder's class is used"), ("csv", "the row's class is used")],
)
def test_each_row_that_contradicts_its_folder_is_told_with_what_becomes_of_it(tmp_path, trust, outcome):
    found = table(tmp_path, "file,label\na.png,{ill}\nb.png,well\n")
    files = (("a.png", "well"), ("b.png", "well"))

    assert problems_of(found, labellings(found, ())[0], *files, trust=trust) == [
        ("a.png", f"The folder says well, row 2 says {{ill}}; {outcome}.")
    ]


def test_repeated_rows_that_agree_with_each_other_and_not_with_the_folder_are_told(tmp_path):
    found = table(tmp_path, "file,label,hand\na.png,ill,0\na.png,ill,1\nb.png,well,0\n")

    assert problems_of(found, labellings(found, ())[0], ("a.png", "well"), ("b.png", "well"), trust="both") == [
        ("a.png", "The folder says well, row 2 says ill; left out.")
    ]


# --- A file for each split


def parts(folder: Path, **texts: str) -> Table:
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    return read_parts([Source(folder / f"{name}.csv", name) for name in texts], folder)


def test_files_of_the_splits_are_one_table_whatever_the_order_of_their_columns(tmp_path):
    found = parts(tmp_path, train="file,label\na.png,ill\nb.png,well\n", test="Label;File\nill;c.png\nwell;d.png\n")
    (labelling,) = labellings(found, ())
    used = use(found, labelling, "csv", match(found, [("a.png", "")]), unsorted=True)

    assert labels(found, labelling) == {"a": "ill", "b": "well", "c": "ill", "d": "well"}
    assert [used.split(name) for name in ("b.png", "x/c.png", "e.png")] == ["train", "test", ""]
    assert found.name == "train.csv, test.csv"


def test_problems_of_files_of_the_splits_name_the_file(tmp_path):
    found = parts(
        tmp_path, train="file,label\na.png,ill\nb.png,well\n,ill\n", test="label,file\nwell,a.png\nill,c.png\n"
    )
    files = [("a.png", ""), ("b.png", "")]
    rows = match(found, files)
    used = use(found, labellings(found, ())[0], "csv", rows, unsorted=True)

    assert [(problem.path, problem.reason) for problem in check(used, rows, lambda: files)] == [
        ("train.csv", "Row 4 names no file."),
        ("train.csv", "Row 2 of train.csv and row 2 of test.csv say different things of a.png; left out."),
        ("test.csv", "Row 3: there is no file c.png."),
    ]


def test_an_image_in_the_files_of_two_splits_is_left_out_even_when_they_agree_on_its_class(tmp_path):
    found = parts(tmp_path, train="file,label\na.png,ill\nb.png,well\n", test="file,label\na.png,ill\n")
    rows = match(found, [("a.png", ""), ("b.png", "")])

    assert use(found, labellings(found, ())[0], "csv", rows, unsorted=True).left_out == {0}


def test_files_with_different_columns_are_not_one_table(tmp_path):
    with pytest.raises(TableError, match="The columns of the CSV files differ"):
        parts(tmp_path, train="file,label\na.png,ill\n", test="file\nb.png\n")


def test_the_same_rows_in_the_file_of_another_split_are_another_digest(tmp_path):
    text = "file,label\na.png,ill\n"

    assert parts(tmp_path, train=text, test=text).digest != parts(tmp_path, train=text, validation=text).digest
