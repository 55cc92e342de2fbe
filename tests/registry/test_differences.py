"""Settings of versions side by side: only what differs, in words."""

from registry.differences import differences, in_words


def test_equal_settings_are_left_out():
    found = differences([{"epochs": 5, "seed": 0}, {"epochs": 9, "seed": 0}])
    assert [(row.key, row.values, row.words) for row in found] == [("epochs", (5, 9), ("5", "9"))]


def test_nested_settings_are_named_by_their_path():
    (row,) = differences([{"pixels": {"fit": "pad", "id": "grey"}}, {"pixels": {"fit": "stretch", "id": "grey"}}])
    assert (row.key, row.name) == ("pixels.fit", "Pixels: fit")


def test_a_setting_that_a_version_lacks_is_said_to_be_not_set_and_one_without_a_value_none():
    (row,) = differences([{"balance": None}, {}])
    assert row.words == ("none", "not set")


def test_a_switch_that_became_a_number_differs_from_it():
    assert len(differences([{"weights": True}, {"weights": 1}])) == 1
    assert not differences([{"weights": 1}, {"weights": 1.0}])


def test_values_are_written_for_people():
    assert [in_words(value) for value in (True, False, None, 0.001, [1, "a"], [], "x", {})] == [
        "yes", "no", "none", "0.001", "1, a", "none", "x", "none",
    ]  # fmt: skip
