"""CSV files that describe images: which column names the file, which ones could be its label, which one its patient.

A table may have millions of rows, so it is read in passes and keeps per row its file's key and a few numbers. One
that lies in several files, train.csv and test.csv say, is read as one, which knows the part that each row belongs to.
"""

import codecs
import csv
import io
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from datasets.names import (
    BODY_PARTS,
    MAX_CLASS_NAME,
    MAX_CLASSES,
    MAX_LISTED,
    Problem,
    capped,
    exact_key,
    harmless,
    is_image,
    natural_key,
    plain,
    positive_class,
    printable,
    shortened,
    words,
)

MAX_CSV_BYTES: Final = 256 * 1024**2
MAX_ROWS: Final = 5_000_000
MAX_COLUMNS: Final = 1000
# Columns that could be the label; what comes after them is not looked at.
MAX_LABEL_COLUMNS: Final = 40
# A column that nothing in its name marks as the label can be it with at most so many different values.
MAX_UNNAMED_VALUES: Final = 20
# Rows in which a column without a known name has to look like image names.
SAMPLE: Final = 100
CHUNK: Final = 1024**2
# Columns of 0 and 1 of which one is set in all rows but so many are the classes, and these rows mistakes. Beyond the
# first share that is asked; beyond the second the columns are findings, of which an image has any number.
FEW_MISTAKES: Final = 0.05
MANY_MISTAKES: Final = 0.2
# Different values besides 0 and 1 in such a column; one with more is no such column.
MAX_ODD_VALUES: Final = 5
NO_LABEL: Final = "has no usable label"

FILE_COLUMNS: Final = (
    "imageid",
    "filename",
    "file",
    "filepath",
    "imagename",
    "imagepath",
    "imagefile",
    "imageindex",
    "image",
    "images",
    "path",
    "img",
    "name",
    "id",
)
LABEL_COLUMNS: Final = (
    "label",
    "labels",
    "class",
    "classname",
    "category",
    "diagnosis",
    "finding",
    "findings",
    "findinglabel",
    "findinglabels",
    "target",
    "grade",
    "kl",
    "klgrade",
)
PATIENT_COLUMNS: Final = (
    "patientid",
    "patient",
    "patientkey",
    "subjectid",
    "subject",
    "participantid",
    "participant",
    "caseid",
)
# Words in the titles of columns that describe the picture or the person, not the finding.
OTHER_COLUMNS: Final = BODY_PARTS | frozenset(
    {"sex", "gender", "male", "female", "age", "view", "position", "side", "laterality", "left", "right", "frontal"}
    | {"lateral", "oblique", "ap", "pa", "hardware", "multiscan", "mixed", "split", "fold", "set", "dataset", "date"}
    | {"width", "height", "modality", "manufacturer", "site", "hospital", "scanner", "device", "url", "license"}
)
TRUE_WORDS: Final = frozenset({"1", "1.0", "true", "yes", "y"})
FALSE_WORDS: Final = frozenset({"", "0", "0.0", "false", "no", "n"})
# "Uncertain" in the CheXpert and MIMIC collections: neither one nor the other.
UNSURE_WORDS: Final = frozenset({"-1", "-1.0"})
FLAG_WORDS: Final = TRUE_WORDS | FALSE_WORDS | UNSURE_WORDS
EMPTY_WORDS: Final = frozenset({"", "nan", "n/a"})

# Codes of what rows and folders say against each other, in the order in which they are told.
CONTRARY: Final = ("label-conflict", "label-overruled", "row-mistake", "ambiguous-row", "no-label")

File = tuple[str, str]  # (POSIX path below the dataset, class of its folder or "")


class TableError(Exception):
    """A CSV file that cannot be used, with the reason in words."""


@dataclass(frozen=True)
class Labelling:
    """One way to read the labels out of a table.

    value: titles of its columns. description: the same in words. labels: label of each of the table's combinations.
    classes: all usable labels. by_name: the title or the values say that this is the label; else it is a guess.
    """

    value: str
    description: str
    labels: tuple[str | None, ...]
    classes: tuple[str, ...]
    by_name: bool = True
    problems: tuple[Problem, ...] = ()
    # What is wrong with a row without a label. one_hot: then it is wrong in a class folder too.
    unlabelled: str = NO_LABEL
    one_hot: bool = False


@dataclass(frozen=True)
class Source:
    """One file of a table. split: "train", "validation" or "test" where the table has a file for each; else ""."""

    path: Path
    split: str = ""


@dataclass(frozen=True)
class Repeat:
    """A further row of a file that says something else than the first, which is row `index` of the table."""

    index: int
    source: int
    number: int
    file: str
    combination: int
    patient: str | None


@dataclass(eq=False)
class Table:
    """Rows by file. A file is found by its path or, shorter, by its name, with or without extension.

    titles: all columns. columns: those that could be the label; values: what is in each of them. combinations: the
    different contents of these columns, as one number for each. keys: index of a row by its file. numbers, source_of,
    combination_of, patient_of: line in the file, index into sources, combinations and patients of each row.
    digest: of the files' content and of the splits they stand for.
    """

    sources: tuple[Source, ...]
    titles: list[str]
    file_column: int
    patient_column: int | None
    columns: list[int]
    values: list[list[str]]
    digest: str
    combinations: list[bytes] = field(default_factory=list)
    keys: dict[str, int] = field(default_factory=dict)
    numbers: "array[int]" = field(default_factory=lambda: array("L"))
    source_of: "array[int]" = field(default_factory=lambda: array("B"))
    combination_of: "array[int]" = field(default_factory=lambda: array("L"))
    patient_of: "array[int]" = field(default_factory=lambda: array("L"))
    patients: list[str | None] = field(default_factory=lambda: [None])
    repeats: list[Repeat] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    problem_counts: Counter[str] = field(default_factory=Counter)

    def find(self, relative: str) -> int | None:
        """The row of a file, by its path below the dataset."""
        key = file_key(relative)
        while (index := self.keys.get(key)) is None and "/" in key:
            key = key.split("/", 1)[1]
        return index

    @property
    def name(self) -> str:
        """Of the file, or of all: "train.csv, test.csv". Printable."""
        return ", ".join(printable(source.path.name) for source in self.sources)

    @property
    def has_splits(self) -> bool:
        return len(self.sources) > 1

    def file_of(self, index: int) -> str:
        """Printable name of the file that a row is in."""
        return printable(self.sources[self.source_of[index]].path.name)

    def row(self, source: int, number: int) -> str:
        """A row in words."""
        return f"row {number} of {printable(self.sources[source].path.name)}" if self.has_splits else f"row {number}"

    def row_of(self, index: int) -> str:
        return self.row(self.source_of[index], self.numbers[index])

    def split_of(self, index: int) -> str:
        """The split that the file stands for in which the row is."""
        return self.sources[self.source_of[index]].split

    def tell(self, reason: str, code: str, source: Source | None = None) -> None:
        self.problem_counts[code] += 1
        if self.problem_counts[code] <= MAX_LISTED:
            self.problems.append(Problem(printable(source.path.name) if source else self.name, reason, code))

    def cells(self, combination: int) -> dict[int, str]:
        """What is in the columns that could be the label, by column."""
        codes = self.combinations[combination]
        return {column: values[code] for column, values, code in zip(self.columns, self.values, codes, strict=True)}


@dataclass(frozen=True, eq=False)
class Labels:
    """A table together with the decision what it is used for.

    labelling: None where the table brings patients alone. trust: "both" (folder and row have to agree), "folder" or
    "csv" (where they do not, this one counts). left_out: rows that contradict themselves or fit several files.
    """

    table: Table
    labelling: Labelling | None
    trust: str = "both"
    left_out: frozenset[int] = frozenset()

    def of(self, combination: int) -> str | None:
        return self.labelling.labels[combination] if self.labelling else None

    def apply(self, relative: str, class_name: str) -> tuple[str, str | None] | None:
        """Class and patient of a file in a folder of this class ("" for none); None when it is left out."""
        index = self.table.find(relative)
        if index is None:
            return (class_name, None) if class_name and self.trust != "csv" else None
        label = None if index in self.left_out else self.decide(self.table.combination_of[index], class_name)
        return (label, self.table.patients[self.table.patient_of[index]]) if label else None

    def split(self, relative: str) -> str:
        """The split of the file that the row of an image is in; "" where the table has one file for all."""
        index = self.table.find(relative) if self.table.has_splits else None
        return "" if index is None else self.table.split_of(index)

    def digest(self) -> str:
        """Hex digest over the files' content and what is made of it; the same digest tells the same of every file."""
        made = (self.table.digest, self.labelling and self.labelling.value, self.trust, sorted(self.left_out))
        return blake2b(repr(made).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()

    def decide(self, combination: int, class_name: str) -> str | None:
        """The class of a file with such a row in a folder of this class; None when they do not tell one."""
        label = self.of(combination)
        if self.trust == "csv":
            return label
        if self.trust == "both" and label and class_name and label != class_name:
            return None
        return class_name or label


@dataclass(eq=False)
class Match:
    """Files and rows put together, for any labelling.

    seen: how many files each row describes. pairs: how many files have this class of their folder and a row of this
    combination. repeated: the same for rows that another one repeats in other words, by row. missing: the first files
    without a row, with the class of their folder; missing_counts: all of them by class.
    """

    table: Table
    seen: "array[int]"
    pairs: Counter[tuple[str, int]] = field(default_factory=Counter)
    repeated: Counter[tuple[str, int]] = field(default_factory=Counter)
    missing: list[File] = field(default_factory=list)
    missing_counts: Counter[str] = field(default_factory=Counter)

    def counts(self, used: Labels) -> dict[str, int]:
        """Images of each class; those that are left out do not count."""
        counts: Counter[str] = Counter()
        for (class_name, combination), number in self.pairs.items():
            counts[used.decide(combination, class_name) or ""] += number
        repeated = set()
        for (class_name, index), number in self.repeated.items():
            repeated.add(index)
            if index not in used.left_out:
                counts[used.decide(self.table.combination_of[index], class_name) or ""] += number
        for index in used.left_out - repeated:
            counts[used.decide(self.table.combination_of[index], "") or ""] -= self.seen[index]
        if used.trust != "csv":
            counts.update(self.missing_counts)
        del counts[""]
        return dict(sorted(counts.items(), key=lambda item: exact_key(item[0])))

    def disagreement(self, labelling: Labelling) -> tuple[int, float]:
        """How many files lie in the folder of another class than their row says, and their share of all that have a
        label in their row."""
        both = [(name, labelling.labels[row], number) for (name, row), number in self.pairs.items()]
        total = sum(number for name, label, number in both if name and label)
        contrary = sum(number for name, label, number in both if name and label not in (name, None))
        return contrary, contrary / max(1, total)


def match(table: Table, files: Iterable[File]) -> Match:
    """Look up the row of every file."""
    repeated = {repeat.index for repeat in table.repeats}
    found = Match(table, array("L", bytes(array("L").itemsize * len(table.numbers))))
    for relative, class_name in files:
        index = table.find(relative)
        if index is None:
            found.missing_counts[class_name] += 1
            if len(found.missing) < MAX_LISTED:
                found.missing.append((relative, class_name))
            continue
        found.seen[index] += 1
        if index in repeated:
            found.repeated[class_name, index] += 1
        else:
            found.pairs[class_name, table.combination_of[index]] += 1
    return found


def use(table: Table, labelling: Labelling | None, trust: str, found: Match, unsorted: bool) -> Labels:
    """The decision as it is used. unsorted: only the rows tell the classes, so a row may fit one file alone."""
    bare = Labels(table, labelling, trust)
    left_out = {
        repeat.index
        for repeat in table.repeats
        if repeat.patient != table.patients[table.patient_of[repeat.index]]
        or table.sources[repeat.source].split != table.split_of(repeat.index)
        or (trust != "folder" and bare.of(repeat.combination) != bare.of(table.combination_of[repeat.index]))
    }
    if unsorted:
        left_out.update(index for index, files in enumerate(found.seen) if files > 1)
    return Labels(table, labelling, trust, frozenset(left_out))


def check(used: Labels, found: Match, files: Callable[[], Iterable[File]]) -> list[Problem]:
    """What folders and rows say of each other, row by row."""
    table = used.table
    own = [problem for code in table.problem_counts for problem in _of_code(table, code)]
    chosen = list(used.labelling.problems) if used.labelling else []
    return [
        *own,
        *capped(chosen),
        *_repeat_problems(used),
        *_contrary(used, found, files),
        *_missing(used, found),
        *_orphans(table, found),
    ]


def _missing(used: Labels, found: Match) -> list[Problem]:
    name, problems = used.table.name, []
    for relative, folder in found.missing:
        kept = "the folder's class is used" if folder and used.trust != "csv" else "left out"
        problems.append(Problem(printable(relative), f"{name} has no row for this file; {kept}.", "no-row"))
    return capped(problems, found.missing_counts.total())


def _of_code(table: Table, code: str) -> list[Problem]:
    return capped([problem for problem in table.problems if problem.code == code], table.problem_counts[code])


def _repeat_problems(used: Labels) -> list[Problem]:
    table = used.table
    told = [
        (table.file_of(repeat.index), f"{_both_rows(table, repeat)} of {shortened(repeat.file)}; left out.")
        for repeat in table.repeats
        if repeat.index in used.left_out
    ]
    return capped([Problem(name, reason, "csv-conflict") for name, reason in told])


def _both_rows(table: Table, repeat: Repeat) -> str:
    if table.has_splits:
        rows = f"{table.row_of(repeat.index)} and {table.row(repeat.source, repeat.number)}"
        return f"{rows[0].upper()}{rows[1:]} say different things"
    return f"Rows {table.numbers[repeat.index]} and {repeat.number} say different things"


def _contrary(used: Labels, found: Match, files: Callable[[], Iterable[File]]) -> list[Problem]:
    """Files that are left out because of their row, or whose row says something else than their folder."""
    pairs = {*found.pairs, *((name, used.table.combination_of[index]) for name, index in found.repeated)}
    if not used.left_out and not any(_odd_pair(used, combination, name) for name, combination in pairs):
        return []
    problems: dict[str, list[Problem]] = {code: [] for code in CONTRARY}
    counts: Counter[str] = Counter()
    repeated = {repeat.index for repeat in used.table.repeats}
    for relative, class_name in files():
        index = used.table.find(relative)
        why = None if index is None else _why_contrary(used, index, class_name, index in repeated)
        if why:
            code, reason = why
            counts[code] += 1
            if counts[code] <= MAX_LISTED:
                problems[code].append(Problem(printable(relative), reason, code))
    for listed in problems.values():
        listed.sort(key=lambda problem: exact_key(problem.path))
    return [problem for code, listed in problems.items() for problem in capped(listed, counts[code])]


def _why_contrary(used: Labels, index: int, class_name: str, repeated: bool) -> tuple[str, str] | None:
    """Code and reason; None for a file without a contradiction or whose rows have been told already."""
    if index in used.left_out:
        row = used.table.row_of(index)
        reason = f"{row[0].upper()}{row[1:]} fits several files; left out. Give each file's path in the CSV file."
        return None if repeated else ("ambiguous-row", reason)
    odd = _odd_pair(used, used.table.combination_of[index], class_name)
    if odd is None:
        return None
    code, template = odd
    reason = template.format(row=used.table.row_of(index))
    return code, f"{reason[0].upper()}{reason[1:]}"


def _odd_pair(used: Labels, combination: int, class_name: str) -> tuple[str, str] | None:
    """What is wrong with a row of this combination for a file in a folder of this class: code, and reason with {row}
    in the place of the row."""
    label, decided = used.of(combination), used.decide(combination, class_name)
    if label and class_name and label != class_name:
        says = f"The folder says {_braced(class_name)}, {{row}} says {_braced(label)}"
        if decided is None:
            return "label-conflict", f"{says}; left out."
        return "label-overruled", f"{says}; the {'folder' if used.trust == 'folder' else 'row'}'s class is used."
    wrong = _braced(used.labelling.unlabelled) if used.labelling else NO_LABEL
    if decided is None:
        return "no-label", f"{{row}} {wrong}; left out."
    if label is None and used.labelling and used.labelling.one_hot:
        return "row-mistake", f"{{row}} {wrong}; the folder's class is used."
    return None


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _orphans(table: Table, found: Match) -> list[Problem]:
    """Rows whose file is not there. Their file names are read again: keeping a million of them is not worth it."""
    unseen = array("L", (index for index, files in enumerate(found.seen) if not files))
    wanted = {(table.source_of[index], table.numbers[index]) for index in unseen[:MAX_LISTED]}
    names = {
        (at, number): name
        for at in sorted({at for at, _ in wanted})
        for number, name in _file_names(table, at, {number for source, number in wanted if source == at})
    }
    problems = []
    for index in unseen[:MAX_LISTED]:
        number = table.numbers[index]
        file = shortened(names.get((table.source_of[index], number), ""))
        problems.append(
            Problem(table.file_of(index), f"Row {number}: there is no file {file}".rstrip() + ".", "no-file")
        )
    return capped(problems, len(unseen))


def _file_names(table: Table, at: int, wanted: set[int]) -> Iterator[tuple[int, str]]:
    """What rows of one of the table's files name, with their numbers."""
    left = len(wanted)
    try:
        with _open(table.sources[at].path) as file:
            lines = _lines(file)
            header = next(lines, (0, []))[1]
            same, title = header == table.titles, table.titles[table.file_column]
            column = table.file_column if same else _order(header, [title])[0]
            for number, line in lines:
                if number in wanted:
                    yield number, _cell(line, column)
                    left -= 1
                if not left:
                    break
    except (TableError, OSError):
        pass  # it changed or went away since; the number of the row is told all the same


# --- Which columns could be the label --------------------------------------------------------------------------------


def labellings(table: Table, classes: Sequence[str]) -> list[Labelling]:
    """The ways to read the label, the likeliest first; more than one is a question for the user.

    classes: those that the folders tell, to which the values of a column are matched; empty where they tell none.
    """
    named = [column for title in LABEL_COLUMNS for column in table.columns if plain(table.titles[column]) == title]
    flags = [column for column, values in zip(table.columns, table.values, strict=True) if _is_flag(values)]
    if classes:
        return _for_folders(table, classes, named, flags)
    found = _distinct([_by_value(table, column, ()) for column in named])
    if found:
        return found
    one_hot, mistakes = _one_hot(table)
    if one_hot and mistakes <= FEW_MISTAKES * len(table.numbers):
        return [one_hot]
    first = [one_hot] if one_hot else []
    if flags:
        return [*first, *_flag_labellings(table, flags)]
    others = [column for column in table.columns if _may_be_label(table, column)]
    return [*first, *(_by_value(table, column, (), by_name=False) for column in others)]


def _for_folders(table: Table, classes: Sequence[str], named: Sequence[int], flags: Sequence[int]) -> list[Labelling]:
    known = set(classes)
    by_value = [_by_value(table, column, classes) for column in named]
    fitting = [labelling for labelling in by_value if known.intersection(labelling.classes)]
    if fitting:
        return [min(fitting, key=lambda labelling: len(set(labelling.classes) - known))]
    spelling = {plain(name): name for name in classes}
    near = _nearly_flags(table)
    yes = {column: spelling[plain(table.titles[column])] for column in near if plain(table.titles[column]) in spelling}
    if yes:
        others = [name for name in classes if name not in yes.values()]
        return [_by_flags(table, yes, others[0] if len(classes) == 2 and len(others) == 1 else "")]
    if by_value:
        return by_value[:1]
    if len(flags) == 1 and len(classes) == 2:
        positive = positive_class(classes)
        negative = classes[0] if classes[1] == positive else classes[1]
        return [_by_flags(table, {flags[0]: positive}, negative, by_name=False)]
    return []


def _one_hot(table: Table) -> tuple[Labelling | None, int]:
    """The columns of 0 and 1 as the classes, where nearly every row sets one of them; and how many rows do not."""
    columns = _nearly_flags(table)
    bad = [number for number in range(len(table.combinations)) if not _sets_one(table.cells(number), columns)]
    mistakes = _rows_of(table, bad)
    if len(columns) < 2 or mistakes > _tolerated(table):
        return None, 0
    return _by_flags(table, {column: table.titles[column] for column in columns}, ""), mistakes


def _nearly_flags(table: Table) -> list[int]:
    """Columns of 0 and 1, also those in which a few rows hold something else."""
    return [
        column
        for column, values in zip(table.columns, table.values, strict=True)
        if _is_flag(values)
        or (_could_be_flag(values) and table.titles[column] and _odd_rows(table, column) <= _tolerated(table))
    ]


def _odd_rows(table: Table, column: int) -> int:
    """Rows with something else than 0, 1 or "uncertain" in a column."""
    cells = ((number, table.cells(number)[column].casefold()) for number in range(len(table.combinations)))
    return _rows_of(table, [number for number, cell in cells if cell not in FLAG_WORDS])


def _rows_of(table: Table, combinations: Sequence[int]) -> int:
    counts = Counter(table.combination_of) if combinations else Counter()
    return sum(counts[combination] for combination in combinations)


def _tolerated(table: Table) -> float:
    return max(1, MANY_MISTAKES * len(table.numbers))


def _sets_one(cells: Mapping[int, str], columns: Sequence[int]) -> bool:
    said = [cells[column].casefold() for column in columns]
    return sum(cell in TRUE_WORDS for cell in said) == 1 and FLAG_WORDS.issuperset(said)


def _flag_labellings(table: Table, flags: Sequence[int]) -> list[Labelling]:
    single = [
        _by_flags(table, {column: table.titles[column]}, f"not {table.titles[column]}", by_name=len(flags) == 1)
        for column in flags
        if table.titles[column]
    ]
    likely = [labelling for labelling in single if not OTHER_COLUMNS.intersection(words(labelling.value))]
    return [*likely, *(labelling for labelling in single if labelling not in likely)]


def _distinct(found: Sequence[Labelling]) -> list[Labelling]:
    """Without those that say the same in other words, such as a number and a name for each class."""
    kept: list[Labelling] = []
    for labelling in sorted(found, key=lambda labelling: all(name.isdecimal() for name in labelling.classes)):
        if labelling.classes and not any(_equivalent(labelling, other) for other in kept):
            kept.append(labelling)
    return kept


def _equivalent(one: Labelling, other: Labelling) -> bool:
    pairs = set(zip(one.labels, other.labels, strict=True))
    return len(pairs) == len({first for first, _ in pairs}) == len({second for _, second in pairs})


def _is_flag(values: Sequence[str]) -> bool:
    said = {value.casefold() for value in values}
    # A column that says the same of every file tells nothing.
    both = bool(said & TRUE_WORDS) and bool(said & FALSE_WORDS)
    return both and said <= FLAG_WORDS


def _could_be_flag(values: Iterable[str]) -> bool:
    """Whether a column is one of 0 and 1, but for a few other values."""
    said = {value.casefold() for value in values}
    return bool(said & TRUE_WORDS) and bool(said & FALSE_WORDS) and len(said - FLAG_WORDS) <= MAX_ODD_VALUES


def _may_be_label(table: Table, column: int) -> bool:
    values = [value for value in table.values[table.columns.index(column)] if value]
    title = table.titles[column]
    return bool(title) and 2 <= len(values) <= MAX_UNNAMED_VALUES and not OTHER_COLUMNS.intersection(words(title))


def _by_value(table: Table, column: int, classes: Sequence[str], by_name: bool = True) -> Labelling:
    spelling = {plain(name): name for name in classes}
    said = [re.sub(r"^(\d+)\.0$", r"\1", table.cells(number)[column]) for number in range(len(table.combinations))]
    values = [None if value.casefold() in EMPTY_WORDS else spelling.get(plain(value), value) for value in said]
    title = table.titles[column]
    return _labelling(table, title, title, values, {value for value in values if value}, by_name)


def _by_flags(table: Table, yes: Mapping[int, str], no: str, by_name: bool = True) -> Labelling:
    values = [_flag_label(table.cells(number), yes, no) for number in range(len(table.combinations))]
    titles = ", ".join(table.titles[column] for column in yes)
    labelling = _labelling(table, titles, titles, values, {*yes.values(), *([no] if no else [])}, by_name)
    if len(yes) < 2 or no:
        return labelling
    return replace(labelling, unlabelled=f"does not set exactly one of {shortened(titles)} to 1", one_hot=True)


def _flag_label(cells: Mapping[int, str], yes: Mapping[int, str], no: str) -> str | None:
    said = {name: cells[column].casefold() for column, name in yes.items()}
    true = [name for name, value in said.items() if value in TRUE_WORDS]
    odd = not FLAG_WORDS.issuperset(said.values())
    if true or odd or UNSURE_WORDS.intersection(said.values()):
        return true[0] if len(true) == 1 and not odd else None
    return no or None


def _labelling(
    table: Table, value: str, titles: str, labels: Sequence[str | None], names: set[str], by_name: bool
) -> Labelling:
    usable = {name for name in names if len(name) <= MAX_CLASS_NAME and harmless(name)}
    return Labelling(
        value=value,
        description=f"labels from the column {shortened(titles)}",
        labels=tuple(label if label in usable else None for label in labels),
        classes=tuple(sorted(usable, key=exact_key)),
        by_name=by_name,
        problems=tuple(_unusable_class(table, name) for name in sorted(names - usable, key=natural_key)),
    )


def _unusable_class(table: Table, name: str) -> Problem:
    reason = f"has {len(name)} characters, at most {MAX_CLASS_NAME} can be used"
    if len(name) <= MAX_CLASS_NAME:
        reason = "has characters that cannot be shown"
    reason = f"The class name {shortened(name)} {reason}; its rows count as not labelled."
    return Problem(table.name, reason, "class-name")


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_table(path: Path, base: Path) -> Table:
    """A CSV file in any of the usual forms. base: the dataset's folder, whose name may lead the paths in the file.

    Raises TableError, with the reason in words, for files that do not describe images or cannot be read.
    """
    return read_parts([Source(path)], base)


def read_parts(sources: Sequence[Source], base: Path) -> Table:
    """One table out of several CSV files with the same columns, in any order, each for one split.

    Raises TableError like `read_table`, and where the columns differ.
    """
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(_open(source.path)) for source in sources]
            return _read(tuple(sources), files, f"{base.name.casefold()}/")
    except OSError as error:
        raise TableError(f"The CSV file cannot be read: {error.strerror}.") from error


def _read(sources: tuple[Source, ...], files: Sequence[BinaryIO], prefix: str) -> Table:
    header = next(_lines(files[0]), (0, []))[1]
    sample = [line for _, _, line in islice(_rows(files, header), SAMPLE)]
    if not sample:
        raise TableError("The CSV file has no rows.")
    if len(header) > MAX_COLUMNS:
        raise TableError(f"The CSV file has more than {MAX_COLUMNS} columns.")
    file_column = _file_column(header, sample)
    if file_column is None:
        raise TableError(f"No column names the image files (columns: {printable(', '.join(header))[:200]}).")
    patient_column = _first_column([plain(title) for title in header], PATIENT_COLUMNS)
    values = _values(_rows(files, header), {file_column, patient_column}, len(header))
    table = Table(sources, header, file_column, patient_column, [], [], _digest(sources, files))
    _choose_columns(table, values)
    _add_rows(table, _rows(files, header), prefix)
    return table


def _rows(files: Sequence[BinaryIO], header: Sequence[str]) -> Iterator[tuple[int, int, list[str]]]:
    """The rows of all files, without their headers: index of the file, number of the line, and the cells in the order
    of `header`."""
    for at, file in enumerate(files):
        lines = _lines(file)
        own = next(lines, (0, []))[1]
        if own == header or not own:
            yield from ((at, number, line) for number, line in lines)
        else:
            order = _order(own, header)
            if len(own) != len(header):
                raise TableError("The columns of the CSV files differ.")
            yield from ((at, number, [_cell(line, column) for column in order]) for number, line in lines)


def _order(own: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where in the file's own header the wanted titles are."""
    titles = [plain(title) for title in own]
    places = [_first_column(titles, [plain(title)]) for title in wanted]
    found = [place for place in places if place is not None]
    if len(set(found)) < len(wanted):
        raise TableError("The columns of the CSV files differ.")
    return found


def _file_column(header: Sequence[str], sample: Sequence[Sequence[str]]) -> int | None:
    named = _first_column([plain(title) for title in header], FILE_COLUMNS)
    if named is not None:
        return named
    shares = [sum(is_image(_cell(line, column)) for line in sample) / len(sample) for column in range(len(header))]
    best = max(shares, default=0)
    return shares.index(best) if best >= 0.9 else None


def _values(
    rows: Iterator[tuple[int, int, list[str]]], others: set[int | None], width: int
) -> dict[int, dict[str, int]]:
    """The different values of each column, with a number for each; columns with too many are left out."""
    found: dict[int, dict[str, int]] = {column: {} for column in range(width) if column not in others}
    for _, _, line in rows:
        for column in tuple(found):
            values = found[column]
            cell = line[column].strip() if column < len(line) else ""
            if cell not in values:
                values[cell] = len(values)
                if len(values) > MAX_CLASSES + 1:
                    del found[column]
    return found


def _choose_columns(table: Table, values: Mapping[int, Mapping[str, int]]) -> None:
    """Keep the columns that could be the label: those called so, else those of 0 and 1, else all with few values."""
    titles = [plain(title) for title in table.titles]
    for column, title in enumerate(titles):
        if title in LABEL_COLUMNS and column not in values and column != table.file_column:
            reason = f"The column {shortened(table.titles[column])} has more than {MAX_CLASSES} different values; "
            table.tell(f"{reason}it is not used as the class.", "label-column")
    named = [column for column in values if titles[column] in LABEL_COLUMNS]
    flags = [column for column, found in values.items() if _is_flag(list(found))]
    near = [column for column, found in values.items() if flags and _could_be_flag(found)]
    others = [column for column, found in values.items() if 2 <= len(found) <= MAX_UNNAMED_VALUES + 1]
    chosen = sorted({*named, *flags, *near}) or others
    table.columns = chosen[:MAX_LABEL_COLUMNS]
    table.values = [list(values[column]) for column in table.columns]


def _add_rows(table: Table, rows: Iterator[tuple[int, int, list[str]]], prefix: str) -> None:
    codes = [{value: code for code, value in enumerate(values)} for values in table.values]
    combinations: dict[bytes, int] = {}
    patients: dict[str | None, int] = {None: 0}
    for source, number, line in rows:
        file = _cell(line, table.file_column)
        if not file:
            table.tell(f"Row {number} names no file.", "csv-row", table.sources[source])
            continue
        content = bytes(known.get(_cell(line, column), 0) for column, known in zip(table.columns, codes, strict=True))
        combination = combinations.setdefault(content, len(combinations))
        patient = None if table.patient_column is None else _cell(line, table.patient_column) or None
        index = table.keys.setdefault(file_key(file).removeprefix(prefix), len(table.numbers))
        if index == len(table.numbers):
            table.numbers.append(number)
            table.source_of.append(source)
            table.combination_of.append(combination)
            table.patient_of.append(patients.setdefault(patient, len(patients)))
        elif _says(table, index) != (table.sources[source].split, combination, patients.get(patient)):
            table.repeats.append(Repeat(index, source, number, file, combination, patient))
    table.combinations, table.patients = list(combinations), list(patients)


def _says(table: Table, index: int) -> tuple[str, int, int]:
    return table.split_of(index), table.combination_of[index], table.patient_of[index]


def file_key(name: str) -> str:
    """What a file is found by: its path in lower case, with slashes, without the ending of an image."""
    path = name.replace("\\", "/").removeprefix("./").strip("/").casefold()
    return path[: -len(PurePosixPath(path).suffix)] if is_image(path) else path


def _cell(line: Sequence[str], column: int) -> str:
    return line[column].strip() if column < len(line) else ""


def _first_column(columns: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((columns.index(name) for name in wanted if name in columns), None)


def _open(path: Path) -> BinaryIO:
    if path.is_symlink() or not path.is_file():
        raise TableError("This is a link or not a regular file; it is not read.")
    try:
        if path.stat().st_size > MAX_CSV_BYTES:
            raise TableError(f"The CSV file is larger than {MAX_CSV_BYTES // 1024**2} MB.")
        return path.open("rb")
    except OSError as error:
        raise TableError(f"The CSV file cannot be opened: {error.strerror}.") from error


def _digest(sources: Sequence[Source], files: Sequence[BinaryIO]) -> str:
    content = blake2b(digest_size=16)
    for source, file in zip(sources, files, strict=True):
        content.update(f"\0{source.split}\0".encode() if source.split else b"")
        file.seek(0)
        while chunk := file.read(CHUNK):
            content.update(chunk)
    return content.hexdigest()


def _lines(file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its line, from the start of the file.

    A first row that already names an image is no header: one of numbered columns is put before it.
    """
    encoding = _encoding(file)
    file.seek(0)
    text = io.TextIOWrapper(_Unclosed(file), encoding, errors="replace", newline="")
    try:
        delimiter, start = _delimiter(text)
        text.seek(0)
        reader = csv.reader(text, delimiter=delimiter)
        rows = (
            (reader.line_num, row) for row in reader if reader.line_num > start and any(cell.strip() for cell in row)
        )
        for number, (line, row) in enumerate(rows):
            if number == 0:
                headless = any(is_image(cell.strip()) for cell in row)
                yield line, [f"column {1 + at}" if headless else cell.strip() for at, cell in enumerate(row)]
                if not headless:
                    continue
            if number > MAX_ROWS:
                raise TableError(f"The CSV file has more than {MAX_ROWS:,} rows.")
            yield line, row
    except (csv.Error, OSError) as error:
        raise TableError(f"The CSV file cannot be parsed: {printable(str(error))}.") from error


class _Unclosed(io.BufferedReader):
    """A file that outlives the text that is read from it."""

    def __init__(self, file: BinaryIO):
        super().__init__(io.FileIO(file.fileno(), closefd=False))


def _encoding(file: BinaryIO) -> str:
    file.seek(0)
    start = file.read(4096)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    even, odd = start[0::2].count(0), start[1::2].count(0)
    if max(even, odd) > 0.3 * len(start) / 2 and min(even, odd) < 0.05 * len(start) / 2:
        return "utf-16-le" if odd > even else "utf-16-be"
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        file.seek(0)
        while chunk := file.read(CHUNK):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        # Spreadsheets in western Europe still write this one, in which every byte means something.
        return "latin-1"
    return "utf-8-sig"


def _delimiter(text: Iterable[str]) -> tuple[str, int]:
    """The delimiter, and the number of lines before the header. It is the one that the header line has most of."""
    for number, line in enumerate(text):
        declared = re.fullmatch(r'"?sep=(.)"?\s*', line)
        if declared and declared[1] in ",;\t|":
            return declared[1], number + 1
        if line.strip(",;\t| \r\n"):
            return max(",;\t|", key=re.sub(r'"[^"]*"', "", line).count), 0
    return ",", 0
