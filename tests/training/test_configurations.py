"""Presets and options: what a user may choose, and what a wrong choice is answered with."""

import json
from dataclasses import fields

import pytest

from training.configurations import (
    AUGMENTATION,
    GROUPS,
    OPTIONS,
    PREPROCESSING,
    PRESETS,
    Configuration,
    ConfigurationError,
    complaints,
)


def test_the_presets_have_5_25_and_50_epochs_under_the_names_users_know():
    assert {preset.label: preset.configuration.epochs for preset in PRESETS.values()} == {
        "Quick Test": 5,
        "Standard": 25,
        "Intensive": 50,
    }
    assert list(PRESETS) == ["quick", "standard", "intensive"]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_says_what_to_expect_and_stops_early(preset):
    assert preset.description.startswith(f"{preset.configuration.epochs} epochs")
    assert len(preset.expectation) > 40
    assert preset.configuration.early_stopping_patience < preset.configuration.epochs


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_configuration_survives_json(preset):
    stored = json.loads(json.dumps(preset.configuration.to_json()))
    assert Configuration.from_json(stored) == preset.configuration


def test_options_absent_from_stored_json_take_their_default():
    assert Configuration.from_json({"epochs": 3}) == Configuration(epochs=3)


def test_options_change_a_copy():
    quick = PRESETS["quick"].configuration
    assert quick.with_options(epochs=2, learning_rate=1e-3).epochs == 2
    assert quick.epochs == 5


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("epochs", 0, "a whole number from 1 to 500"),
        ("epochs", 2.5, "a whole number from 1 to 500"),
        ("epochs", float("inf"), "a whole number from 1 to 500"),
        ("epochs", True, "a whole number from 1 to 500"),
        ("epochs", "5", "a whole number from 1 to 500"),
        ("batch_size", 513, "a whole number from 1 to 512"),
        ("learning_rate", 0, "a number above 0 up to 1"),
        ("learning_rate", float("nan"), "a number above 0 up to 1"),
        ("label_smoothing", 0.31, "a number from 0 to 0.3"),
        ("seed", -1, "a whole number from 0 to 2147483647"),
        ("optimizer", "adagrad", "one of adamw, adam, sgd"),
        ("schedule", None, "one of cosine, constant, step, plateau"),
        ("deterministic", "yes", "true or false"),
    ],
)
def test_an_unusable_value_is_refused_with_its_field_and_the_allowed_range(field, value, allowed):
    with pytest.raises(ConfigurationError) as refusal:
        Configuration().with_options(**{field: value})
    assert refusal.value.field == field
    assert allowed in str(refusal.value) and repr(value) in str(refusal.value)


@pytest.mark.parametrize("field", ["epochs", "learning_rate", "image_size", "optimizer", "flip", "preprocessing"])
@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000, "x" * 500], ids=["huge", "low", "endless", "text"])
def test_a_value_without_measure_is_refused_in_few_words(field, value):
    with pytest.raises(ConfigurationError) as refusal:
        Configuration().with_options(**{field: value})
    assert refusal.value.field == field and len(str(refusal.value)) < 150


@pytest.mark.parametrize("value", [32, 100, 1024, True, "224", [224], 224.5])
def test_an_image_size_that_cannot_be_prepared_is_refused_with_those_that_can(value):
    with pytest.raises(ConfigurationError, match="Image size must be one of 64, 128, 224, 299, not "):
        Configuration(image_size=value)
    assert type(Configuration(image_size=224.0).image_size) is int


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", [10**400, "x", [1], {}, True, 300])
def test_whatever_is_stored_has_words(name, value):
    assert OPTIONS[name].words(value)


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="no training option 'batchsize'") as refusal:
        Configuration.from_json({"batchsize": 8})
    assert refusal.value.field == "batchsize"


def test_whole_numbers_written_with_a_point_are_whole_numbers():
    configuration = Configuration(epochs=3.0, learning_rate=1)
    assert type(configuration.epochs) is int and type(configuration.learning_rate) is float


@pytest.mark.parametrize("field", ["batch_size", "learning_rate", "minimum_steps"])
def test_some_options_may_be_left_to_the_architecture(field):
    assert getattr(Configuration(**{field: None}), field) is None
    with pytest.raises(ConfigurationError):
        Configuration(**{field: 0})


# -- The options in words


def test_every_field_of_a_configuration_is_an_option_with_words_and_a_group():
    assert set(OPTIONS) == {field.name for field in fields(Configuration)}
    for name, option in OPTIONS.items():
        assert option.name == name and option.group in GROUPS
        assert option.label[0].isupper() and option.help.endswith(".") and len(option.help) < 130
    assert {option.group for option in OPTIONS.values()} == set(GROUPS)


def test_groups_follow_each_other_in_the_order_of_the_options():
    shown = list(dict.fromkeys(option.group for option in OPTIONS.values()))
    assert tuple(shown) == GROUPS


def test_the_default_of_every_option_is_allowed_and_has_words():
    usual = Configuration()
    for name, option in OPTIONS.items():
        assert option.check(getattr(usual, name)) == getattr(usual, name)
        assert option.words(getattr(usual, name))
    assert OPTIONS["batch_size"].words(None) == "the architecture's own"
    assert OPTIONS["flip"].words(True) == "on" and OPTIONS["schedule"].words("step") == "In steps"
    assert OPTIONS["preprocessing"].words(()) == "none"
    assert (OPTIONS["seed"].words(2**31 - 1), OPTIONS["learning_rate"].words(0.0005)) == ("2147483647", "0.0005")


def test_every_strength_of_the_augmentation_is_an_option_of_its_group():
    assert set(AUGMENTATION) == {
        "flip", "shift", "zoom", "rotation", "contrast", "brightness", "gamma", "blur", "noise", "erase",
    }  # fmt: skip


def test_all_that_is_wrong_is_told_at_once_each_with_its_field():
    found = complaints({"epochs": 0, "blur": 9, "shift": 0.1, "balance": "luck", "nonsense": 1})
    assert set(found) == {"epochs", "blur", "balance", "nonsense"}
    assert found["blur"] == "Blur must be a number from 0 to 3, not 9."
    assert "one of weights, sampling, none" in found["balance"]


# -- Preprocessing


def test_preprocessing_is_kept_in_the_order_of_the_pipeline_and_survives_json():
    configuration = Configuration(preprocessing=["clahe", "crop_borders"])
    assert configuration.preprocessing == ("crop_borders", "clahe")
    assert Configuration.from_json(json.loads(json.dumps(configuration.to_json()))) == configuration
    assert Configuration().preprocessing is None and Configuration(preprocessing=[]).preprocessing == ()


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("clahe", "must be a list of steps"),
        (["sharpen"], "no preprocessing step 'sharpen'; there are crop_borders, clahe, equalise"),
        ([["clahe"]], "no preprocessing step"),
        (["clahe", "equalise"], "not both"),
    ],
)
def test_preprocessing_that_does_not_exist_is_refused(value, complaint):
    with pytest.raises(ConfigurationError, match=complaint) as refusal:
        Configuration(preprocessing=value)
    assert refusal.value.field == "preprocessing"


def test_the_steps_are_those_of_the_pixel_code():
    assert PREPROCESSING == ("crop_borders", "clahe", "equalise")
