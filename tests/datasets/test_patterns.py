"""Regular expressions of users: what they find in file names, what is refused, and that none can hang the platform."""

import time

import pytest

from datasets import patterns
from datasets.patterns import PatternError, Preview, compile_pattern, preview, without_extension
from tests.datasets.files import NO_SHARED, SHARED


def found(text: str, *names: str) -> list[str | None]:
    return list(compile_pattern(text).patients(names))


# --- What a pattern finds


def test_the_group_in_brackets_is_the_patient():
    assert found(r"^(\d+)_", "12_left.png", "12_right.png", "x_left.png") == ["12", "12", None]


def test_a_group_called_patient_may_have_others_beside_it():
    assert found(r"^(left|right)_(?P<patient>\w+)$", "left_ab.png") == ["ab"]


def test_the_pattern_is_searched_anywhere_in_the_name():
    assert found(r"pat(\d+)", "A/study pat7 left.png") == ["7"]


def test_folders_and_extension_are_not_searched():
    assert found(r"(p\d|png)", "p1/p2.png", "p1/x.png") == ["p2", None]


def test_upper_and_lower_case_are_alike_in_the_pattern_and_in_the_patient():
    assert found(r"^(pat[a-z]+)", "PATX_1.png", "patx_2.PNG", "Patx_3.dcm") == ["patx"] * 3


def test_an_empty_group_tells_nothing():
    assert found(r"^(\d*)_|^left", "_1.png", "left.png") == [None, None]


@pytest.mark.parametrize(
    ("path", "name"),
    [("A/b.png", "A/b"), ("b.JPEG", "b"), ("1.2.840.10008", "1.2.840.10008"), ("a.tiff.dcm", "a.tiff"), ("", "")],
)
def test_only_the_extensions_of_images_are_taken_off(path, name):
    assert without_extension(path) == name


# --- What is refused, in words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The pattern is empty"),
        ("(a" + "x" * 199, "has 201 characters; at most 200 are allowed"),
        (r"^(\d+", r"not a valid regular expression: missing \) at character 6"),
        ("(a)[b", "unterminated character set at character 6"),
        ("(a**)", "multiple repeat at character 4"),
        (r"^\d+", "exactly one group .* it has 0 groups"),
        (r"(\d)(\d)", "exactly one group .* it has 2 groups"),
        ("(?x)(a)", r"\(\?x\) at character 1 .* not supported"),
        ("(a(?R)?)", r"\(\?R\) at character 3 .* not supported"),
        ("(a)(?#[)", "comments"),
    ],
)
def test_a_wrong_pattern_is_refused_with_the_reason_and_the_place(text, message):
    with pytest.raises(PatternError, match=message):
        compile_pattern(text)


@pytest.mark.parametrize(
    "text",
    [
        "(?:(?:a{255}){255}){255}(b)",
        "(?:a{1000}){1000}()",
        "(" + "(?:" * 35 + "a" + ")+" * 35 + ")",
        r"(?:[^]()]{255}){255}(x)",
        r"(?:\({255}){255}(x)",
        "(a){99999999999999999999}",
    ],
)
def test_a_pattern_that_would_take_gigabytes_to_compile_is_refused_at_once(text):
    begun = time.thread_time()

    with pytest.raises(PatternError, match="repeats repetitions too often"):
        compile_pattern(text)

    assert time.thread_time() - begun < 0.1


@pytest.mark.parametrize(
    "text",
    [r"^(\d{8})-\d{8}-\d{8}_.{64}", r"([a-z]{1,64})_\d{1,64}[()+]{2}", r"^(?:[A-Z]+_)+(\d+)$", r"(?i)^(?>a)(b)"],
)
def test_ordinary_repetitions_are_allowed(text):
    assert compile_pattern(text).group == 1


@pytest.mark.parametrize("text", ["^(?:a|aa)+($)", "^(?:a|aa)*(c)$", "^(a*a*a*a*a*a*a*a*)c$", "(?:(?:a+)+)+(c)"])
def test_a_pattern_that_would_search_for_ever_ends_within_its_time(text):
    begun = time.thread_time()
    try:
        assert found(text, "a" * 200 + "b") == [None]
    except PatternError as error:
        assert "takes too long" in str(error)

    assert time.thread_time() - begun < 0.5


def test_backtracking_without_end_is_told():
    with pytest.raises(PatternError, match="takes too long"):
        found("^(?:a|aa)+($)", "a" * 200 + "b")


def test_many_names_that_are_slow_together_end_too(monkeypatch):
    """Each name takes 2 to 20 ms, which alone is allowed."""
    monkeypatch.setattr(patterns, "SECONDS_IN_ALL", 0.05)
    names = ["a" * 22 + "b"] * 1000
    begun = time.thread_time()

    with pytest.raises(PatternError, match="takes too long"):
        found("^(?:a|aa)+($)", *names)

    assert time.thread_time() - begun < 0.5


def test_the_time_of_all_names_together_is_limited_even_if_each_is_fast(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS_IN_ALL", 1e-4)
    monkeypatch.setattr(patterns, "SECONDS_MORE_A_NAME", 0)

    with pytest.raises(PatternError, match="takes too long"):
        found("(a)", *["b" * 100] * 10_000)


# --- Preview


def test_the_preview_counts_images_and_patients():
    names = ["A/7_1.png", "A/7_2.png", "B/8_1.png", "B/x.png"]

    assert preview(r"^(\d+)_", names) == Preview(
        matched=3,
        unmatched=1,
        groups=2,
        largest=2,
        examples=[("A/7_1.png", "7"), ("A/7_2.png", "7"), ("B/8_1.png", "8"), ("B/x.png", None)],
        unmatched_examples=["B/x.png"],
    )


def test_the_preview_lists_few_and_counts_all():
    shown = preview(r"^(\d+)_", (f"{number}_{'' if number % 2 else 'x'}.png" for number in range(100)), limit=3)

    assert (shown.matched, shown.groups, len(shown.examples), shown.unmatched_examples) == (100, 100, 3, [])
    assert len(preview("(z)", (f"{number}.png" for number in range(100)), limit=3).unmatched_examples) == 3


def test_an_empty_pattern_shows_what_the_built_in_ones_find():
    shown = preview("", ["person1_virus_1.png", "person1_bacteria_2.png", "97.jpg", "97-rotated1.jpg", "photo.jpg"])

    assert [patient for _, patient in shown.examples] == ["person1", "person1", "97", "97", None]


def test_a_copy_belongs_to_its_picture():
    shown = preview("", ["A/scan.png", "A/scan - Copy.png", "A/scan (1).png", "B/scan (1).png"])

    assert [patient for _, patient in shown.examples] == [None, "scan", "scan", None]


def test_a_preview_of_nothing_is_all_zeros():
    assert preview("(a)", []) == Preview(0, 0, 0, 0, [], [])


@pytest.mark.skipif(not SHARED.is_dir(), reason=NO_SHARED)
def test_on_the_real_knees_a_pattern_finds_what_the_built_in_one_finds():
    folder = SHARED / "Dataset" / "KNEE"
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))

    by_user, built_in = preview(r"^(\d+)[LR]$", names), preview("", names)

    assert by_user == built_in
    assert (by_user.matched, by_user.unmatched) == (800, 0)
