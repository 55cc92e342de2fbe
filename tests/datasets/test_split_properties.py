"""What holds for every dataset: no patient, no copy and no near-duplicate is ever on two sides of a split."""

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datasets.patterns import PatternError, compile_pattern, preview
from datasets.splitting import SPLITS, Row, SplitError, SplitResult, group_keys, shared_groups, split

FRACTIONS = (0.70, 0.15, 0.15)


class Images(NamedTuple):
    rows: list[Row]
    labels: list[str]
    sources: list[str]

    def permuted(self, order: Sequence[int]) -> "Images":
        return Images(*([column[i] for i in order] for column in self))


@st.composite
def datasets(draw) -> Images:
    """60 to 300 images of two to four classes. A patient is known by a number, by the file name or not at all; some
    images are copies of others, some near-duplicates, and some come with a split of their own."""
    generator = random.Random(draw(st.integers(0, 10**6)))
    classes, patients = draw(st.integers(2, 4)), draw(st.integers(30, 100))
    largest = draw(st.integers(1, 5))
    copies, clusters = draw(st.sampled_from([0, 0.03])), draw(st.sampled_from([0, 0.05]))
    sourced = draw(st.booleans())
    rows, labels, sources = [], [], []
    for patient in range(patients):
        known = generator.choice(["csv", "name", ""])
        for image in range(generator.randint(1, largest)):
            number = len(rows)
            name = f"person{patient}_virus_{image}.png" if known == "name" else f"{number}.png"
            digest = str(generator.randrange(number + 1) if generator.random() < copies else number)
            cluster = generator.randrange(30) if generator.random() < clusters else None
            key = f"k{patient}" if known == "csv" else None
            rows.append(Row(f"A/{name}", digest, key, "csv" if key else "", cluster))
            labels.append(f"class {(patient + (generator.random() < 0.1)) % classes}")
            sources.append(generator.choice([*SPLITS, ""]) if sourced else "")
    return Images(rows, labels, sources)


def divide(images: Images, seed: int = 0) -> tuple[list[str], SplitResult]:
    """Groups and split; examples that have too few patients to be divided are passed over."""
    keys = group_keys(images.rows).keys
    try:
        return keys, split(images.labels, keys, images.sources, seed=seed)
    except SplitError:
        assume(False)
        raise


def sides(marks: Iterable[Hashable], splits: Sequence[str]) -> int:
    """The largest number of splits over which images of one mark (but None) are spread."""
    found: defaultdict[Hashable, set[str]] = defaultdict(set)
    for mark, name in zip(marks, splits, strict=True):
        if mark is not None:
            found[mark].add(name)
    return max(map(len, found.values()), default=1)


@settings(max_examples=60, deadline=None)
@given(images=datasets(), seed=st.integers(0, 1000))
def test_no_group_no_patient_no_copy_and_no_near_duplicate_straddles(images, seed):
    groups, result = divide(images, seed)

    assert shared_groups(result.splits, groups) == 0
    assert sides((row.patient_key for row in images.rows), result.splits) == 1
    assert sides((row.digest for row in images.rows), result.splits) == 1
    assert sides((row.cluster for row in images.rows), result.splits) == 1
    people = (row.relative.split("_")[0] if "person" in row.relative else None for row in images.rows)
    assert sides(people, result.splits) == 1


@settings(max_examples=60, deadline=None)
@given(images=datasets(), seed=st.integers(0, 1000))
def test_every_part_has_every_class_and_the_shares_are_those_of_the_result(images, seed):
    _, result = divide(images, seed)

    totals, counted = Counter(images.labels), Counter(zip(images.labels, result.splits, strict=True))
    assert {(label, name): counted[label, name] / totals[label] for label in totals for name in SPLITS} == {
        (label, name): share for label, shares in result.shares.items() for name, share in shares.items()
    }
    assert min(counted[label, name] for label in totals for name in SPLITS) > 0


@st.composite
def patients_of_several_classes(draw) -> tuple[list[str], list[str]]:
    """Labels and groups of two to four classes with six patients at least, some of them in two classes."""
    classes = draw(st.integers(2, 4))
    patients = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 9)), min_size=20, max_size=120))
    rows = []
    for patient, (images, label) in enumerate(patients):
        for image in range(images):
            mixed = label == 9 and image % 2
            rows.append((f"class {(label + mixed) % classes}", f"patient {patient}"))
    labels, groups = [row[0] for row in rows], [row[1] for row in rows]
    members = {name: {group for label, group in rows if label == name} for name in set(labels)}
    assume(len(members) > 1 and all(len(found) >= 6 for found in members.values()))
    assume(all(count >= 10 for count in Counter(labels).values()))
    return labels, groups


@settings(max_examples=100, deadline=None)
@given(
    data=patients_of_several_classes(),
    seed=st.integers(0, 1000),
    sourced=st.booleans(),
    randomness=st.randoms(use_true_random=False),
)
def test_with_six_patients_a_class_there_is_always_a_division(data, seed, sourced, randomness):
    labels, groups = data
    sources = [randomness.choice([*SPLITS, ""]) if sourced else "" for _ in labels]

    result = split(labels, groups, sources, seed=seed)

    assert shared_groups(result.splits, groups) == 0
    assert min(share for shares in result.shares.values() for share in shares.values()) > 0


@settings(max_examples=50, deadline=None)
@given(images=datasets(), seed=st.integers(0, 1000), randomness=st.randoms(use_true_random=False))
def test_the_same_seed_gives_each_image_the_same_split_in_any_order_of_the_rows(images, seed, randomness):
    _, straight = divide(images, seed)
    order = list(range(len(images.rows)))
    randomness.shuffle(order)

    _, mixed = divide(images.permuted(order), seed)

    assert mixed.splits == [straight.splits[i] for i in order]
    assert (mixed.warnings, mixed.moved, mixed.shares) == (straight.warnings, straight.moved, straight.shares)


@settings(max_examples=40, deadline=None)
@given(
    patients=st.lists(st.integers(60, 200), min_size=2, max_size=5),
    largest=st.integers(1, 4),
    seed=st.integers(0, 99),
    validation=st.sampled_from([0.05, 0.1, 0.15, 0.3]),
    test=st.sampled_from([0.05, 0.15, 0.2, 0.3]),
)
def test_with_small_groups_every_class_is_within_one_group_of_its_share(patients, largest, seed, validation, test):
    generator = random.Random(seed)
    rows = [
        (f"c{label}", f"{label}/{patient}")
        for label, count in enumerate(patients)
        for patient in range(count)
        for _ in range(generator.randint(1, largest))
    ]
    labels, groups = [row[0] for row in rows], [row[1] for row in rows]
    fractions = (1 - validation - test, validation, test)

    result = split(labels, groups, [""] * len(rows), seed=seed, fractions=fractions)

    totals = Counter(labels)
    for label, shares in result.shares.items():
        for name, share in zip(SPLITS, fractions, strict=True):
            assert abs(shares[name] - share) * totals[label] <= largest
    assert not any("could not be kept" in warning for warning in result.warnings)


@settings(max_examples=30, deadline=None)
@given(patients=st.integers(40, 120), largest=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_two_seeds_differ(patients, largest, seed):
    generator = random.Random(seed)
    rows = [("AB"[n % 2], f"p{n}") for n in range(patients) for _ in range(generator.randint(1, largest))]
    labels, groups = [row[0] for row in rows], [row[1] for row in rows]

    one, other = (split(labels, groups, [""] * len(rows), seed=number).splits for number in (seed, seed + 1))

    assert one != other


@settings(max_examples=30, deadline=None)
@given(images=datasets(), seed=st.integers(0, 1000))
def test_a_division_that_came_with_the_folders_and_is_clean_is_kept(images, seed):
    groups, first = divide(images._replace(sources=[""] * len(images.rows)), seed)
    assume(first.splits.count("validation") >= 0.05 * len(groups))

    again = split(images.labels, groups, first.splits, seed=seed + 1)

    assert again.splits == first.splits
    assert (again.moved, again.deviation) == (0, 0)


@settings(max_examples=40, deadline=None)
@given(images=datasets(), seed=st.integers(0, 1000))
def test_an_image_keeps_the_part_of_its_folder_or_goes_into_train_unless_a_part_was_drawn_anew(images, seed):
    groups = group_keys(images.rows).keys
    try:
        result = split(images.labels, groups, images.sources, seed=seed)
    except SplitError:
        assume(False)
        raise
    assume(not any("anew" in warning for warning in result.warnings) and "test" in images.sources)

    for name, source in zip(result.splits, images.sources, strict=True):
        assert name in (source or "train", "train")


SNIPPETS = [
    "a",
    "(",
    ")",
    "(?:",
    "(?P<patient>",
    "[",
    "]",
    "{9}",
    "{255}",
    "{,3}",
    "+",
    "*",
    "?",
    "|",
    "\\",
    "\\d",
    "^",
]
expressions = st.one_of(st.text(max_size=40), st.lists(st.sampled_from(SNIPPETS), max_size=30).map("".join))


@settings(max_examples=400, deadline=None)
@given(text=expressions, names=st.lists(st.text(max_size=30), max_size=4))
def test_whatever_the_user_types_nothing_but_a_pattern_error_comes_out(text, names):
    try:
        compile_pattern(text)
        shown = preview(text, [*names, "a" * 60 + "1.png"])
    except PatternError as error:
        assert str(error)
    else:
        assert shown.matched + shown.unmatched == len(names) + 1
        assert shown.groups <= shown.matched
        assert shown.largest <= shown.matched
