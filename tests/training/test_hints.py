"""What the curves of a training mean, in words: synthetic histories of every kind, each with its one observation."""

import html
import math

import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import DatasetFactory
from training.configurations import PRESETS
from training.hints import SIGNS, WHAT_TO_DO, hints
from training.live import NO_WORKER
from training.models.speed import PLENTY_OF_MEMORY
from training.preflight import preflight
from training.supervisor import _out_of_memory

NAN = float("nan")


def history(loss, val_loss=None, **columns):
    """Rows as EpochMetric has them; a column is a list or one value for every epoch."""
    rows = []
    for index, value in enumerate(loss):
        row = {"epoch": index + 1, "loss": value, "val_loss": val_loss[index] if val_loss else None}
        for name, values in columns.items():
            row[name] = values[index] if isinstance(values, list) else values
        rows.append(row)
    return rows


def codes(rows, epochs=25, **options):
    return [hint.code for hint in hints(rows, classes=2, epochs=epochs, **options)]


def falling(start, end, epochs):
    return [start + (end - start) * index / (epochs - 1) for index in range(epochs)]


GOOD = history(falling(0.6, 0.2, 8), falling(0.55, 0.3, 8), auc=falling(0.7, 0.95, 8), val_auc=falling(0.7, 0.93, 8))


def test_nothing_is_said_before_the_first_epoch_has_ended():
    assert codes([]) == []


def test_a_training_that_goes_well_gives_no_hint():
    assert codes(GOOD) == []


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_the_first_epochs_are_not_judged(epochs):
    assert codes(history([0.69] * epochs, [0.69] * epochs, val_auc=0.5)) == []


def test_a_loss_that_stays_at_that_of_guessing_is_no_learning():
    (hint,) = hints(history([0.70, 0.69, 0.695, 0.693], [0.70] * 4, val_auc=0.52), classes=2, epochs=25)
    assert (hint.code, hint.level) == ("not-learning", "problem")
    assert "after 4 epochs the training loss is 0.693, that of guessing (0.693)" in hint.text
    assert "0.520 (0.5 is guessing)" in hint.text
    assert "quality report" in hint.advice and "pretrained weights" in hint.advice


def test_the_loss_of_guessing_grows_with_the_number_of_classes():
    rows = history([1.62, 1.61, 1.6, 1.6], [1.62] * 4, val_auc=0.5)
    assert hints(rows, classes=5, epochs=25)[0].code == "not-learning"
    assert math.log(5) == pytest.approx(1.609, abs=0.001)
    learned = history([1.6, 1.3, 1.1, 1.0], [1.6, 1.4, 1.2, 1.1], val_auc=[0.5, 0.7, 0.8, 0.85])
    assert hints(learned, classes=5, epochs=25) == []


def test_a_network_that_gives_every_image_the_same_class_has_collapsed():
    rows = history([0.69] * 5, [0.69] * 5, val_auc=0.5, val_accuracy=0.73)
    assert codes(rows, shares=[0.27, 0.73]) == ["collapsed"]
    assert codes(rows, shares=[0.5, 0.5]) == ["not-learning"], "the accuracy is that of no class"
    assert codes(rows) == ["collapsed"]


def test_without_a_known_auc_nobody_guesses():
    """With one class in the validation part it has no AUC."""
    still = history([0.5, 0.45, 0.42, 0.40, 0.38], [0.69] * 5, val_accuracy=1.0)
    assert codes(still) == codes(still, shares=[1.0, 0.0]) == []


def test_without_validation_the_auc_of_the_training_images_tells_that_nothing_is_learned():
    assert codes(history([0.69] * 5, auc=0.51)) == ["not-learning", "no-validation"]
    assert codes(history([0.69] * 5)) == ["no-validation"]


def test_an_accuracy_that_stands_still_while_images_are_ranked_well_is_no_collapse():
    """A threshold of one half suits no network in its first epochs; the platform chooses its own."""
    rows = history(falling(0.6, 0.4, 5), falling(0.6, 0.5, 5), val_auc=0.9, val_accuracy=0.73)
    assert codes(rows, shares=[0.27, 0.73]) == []


def test_learning_the_training_images_by_heart_is_told_from_not_learning():
    rows = history(falling(0.6, 0.1, 6), falling(0.7, 1.5, 6), auc=falling(0.7, 0.99, 6), val_auc=0.52)
    assert codes(rows) == ["by-heart"]


def test_a_validation_loss_that_rises_while_the_training_loss_falls_is_over_fitting():
    rows = history(falling(0.6, 0.15, 10), [*falling(0.6, 0.3, 5), *falling(0.32, 0.55, 5)], val_auc=0.88)
    (hint,) = hints(rows, classes=2, epochs=25)
    assert (hint.code, hint.level) == ("over-fitting", "advice")
    assert "best in epoch 5 (loss 0.300)" in hint.text
    assert "weights of the best epoch are kept" in hint.advice


def test_one_bad_epoch_is_no_over_fitting():
    rows = history(falling(0.6, 0.3, 8), [0.6, 0.5, 0.4, 0.35, 0.36, 0.36, 0.35, 0.9], val_auc=0.9)
    assert codes(rows) == []


def test_a_validation_loss_that_rises_a_little_while_the_ranking_improves_is_no_over_fitting():
    """Seen with synthetic samples: the test AUC was 1.000."""
    loss = [0.497, 0.186, 0.143, 0.133, 0.127, 0.124, 0.125, 0.123]
    val_loss = [4.217, 0.678, 0.602, 0.482, 0.451, 0.521, 0.507, 0.488]
    val_auc = [0.579, 0.736, 0.851, 0.876, 0.917, 0.901, 0.926, 0.934]
    assert codes(history(loss, val_loss, val_auc=val_auc)) == []
    assert codes(history(loss, [*val_loss[:5], 0.7, 0.7, 0.7], val_auc=val_auc)) == ["over-fitting"]


def test_tiny_losses_that_double_are_no_over_fitting():
    rows = history(falling(0.2, 0.1, 8), [0.01, 0.002, 0.003, 0.004, 0.004, 0.005, 0.005, 0.006], val_auc=1.0)
    assert codes(rows) == []


def test_ranking_the_training_images_far_better_is_over_fitting():
    rows = history(falling(0.6, 0.2, 5), [0.5] * 5, auc=[0.7, 0.8, 0.9, 0.95, 0.99], val_auc=0.8)
    (hint,) = hints(rows, classes=2, epochs=25)
    assert hint.code == "over-fitting"
    assert "AUC 0.990" in hint.text and "0.800" in hint.text


def test_a_loss_that_is_no_number_is_all_that_is_said():
    rows = history([0.6, 0.5, NAN], [0.6, 0.5, 0.5], val_auc=0.5)
    (hint,) = hints(rows, classes=2, epochs=25)
    assert (hint.code, hint.level) == ("not-a-number", "problem")
    assert "In epoch 3" in hint.text and "ten times smaller" in hint.advice


def test_a_training_loss_that_only_rises_diverges():
    rows = history([0.6, 0.5, 0.6, 0.8, 1.2], [0.6, 0.5, 0.7, 0.9, 1.0], val_auc=0.8)
    assert codes(rows) == ["diverging"]


def test_a_training_loss_far_above_that_of_guessing_leads_to_the_learning_rate_first():
    rows = history([9.0, 6.0, 5.0, 4.0, 3.5], [0.7, 0.7, 0.7, 1.2, 1.4], auc=0.95, val_auc=0.5, val_accuracy=0.5)
    (hint,) = hints(rows, classes=2, epochs=25, shares=[0.5, 0.5])
    assert hint.code == "diverging" and "learning rate" in hint.text
    assert "3.500, far above that of guessing (0.693)" in hint.text
    assert codes(history([0.9, 0.85, 0.82, 0.8], [0.6] * 4, auc=0.8, val_auc=0.8)) == []


def test_where_other_layers_begin_to_learn_the_loss_may_rise():
    rows = history([0.4, 0.35, 0.3, 0.9, 0.5], [0.5] * 5, val_auc=0.8, stage=["head"] * 3 + ["fine-tuning"] * 2)
    assert codes(rows) == []


def test_a_loss_that_jumps_means_a_learning_rate_that_is_too_high():
    rows = history([0.6, 0.9, 0.5, 0.8, 0.5, 0.9, 0.4], falling(0.6, 0.5, 7), val_auc=0.8)
    (hint,) = hints(rows, classes=2, epochs=25)
    assert hint.code == "jumping" and "learning rate" in hint.text


def test_while_the_loss_jumps_the_gap_to_validation_is_not_called_over_fitting():
    rows = history([0.6, 0.9, 0.5, 0.8, 0.5, 0.9, 0.4], falling(0.6, 0.5, 7), auc=0.99, val_auc=0.8)
    assert codes(rows) == ["jumping"]


def test_a_validation_loss_that_jumps_thrice_means_the_same():
    rows = history(falling(0.6, 0.4, 8), [0.6, 1.2, 0.5, 1.1, 0.5, 1.5, 0.5, 0.45], val_auc=0.8)
    assert codes(rows) == ["jumping"]


def test_without_a_validation_part_that_is_said():
    assert codes(history(falling(0.6, 0.2, 6), auc=falling(0.7, 0.9, 6))) == ["no-validation"]


def test_stopping_early_is_fine_and_says_so():
    rows = history(falling(0.6, 0.4, 9), [0.6, 0.5, 0.45, 0.46, 0.46, 0.46, 0.46, 0.46, 0.46], val_auc=0.9)
    (hint,) = hints(rows, classes=2, epochs=25, succeeded=True)
    assert (hint.code, hint.level) == ("stopped-early", "fine")
    assert "after epoch 9 of 25" in hint.text and "since epoch 3" in hint.text
    assert codes(rows) == [], "while it goes on nothing was stopped"


def test_stopping_early_without_validation_speaks_of_the_training_loss():
    rows = history([0.6, 0.4, 0.3, 0.31, 0.31, 0.32, 0.31], auc=0.9)
    found = hints(rows, classes=2, epochs=25, succeeded=True)
    assert [hint.code for hint in found] == ["no-validation", "stopped-early"]
    assert "the training loss had not improved since epoch 3" in found[1].text


def test_a_training_that_still_improves_at_its_last_epoch_should_be_longer():
    rows = history(falling(0.6, 0.3, 5), [0.6, 0.55, 0.5, 0.45, 0.4], val_auc=0.9)
    (hint,) = hints(rows, classes=2, epochs=5, succeeded=True)
    assert hint.code == "still-improving" and "Standard instead of Quick Test" in hint.advice
    flat = history(falling(0.6, 0.3, 5), [0.6, 0.5, 0.42, 0.40, 0.399], val_auc=0.9)
    assert codes(flat, epochs=5, succeeded=True) == []


def test_a_low_figure_on_the_test_part_leads_to_the_data():
    rows = history(falling(0.65, 0.6, 5), [0.64, 0.62, 0.62, 0.62, 0.62], val_auc=0.68)
    (hint,) = hints(rows, classes=2, epochs=5, succeeded=True, test_auc=0.66)
    assert hint.code == "low-figures"
    assert "0.660" in hint.text and "quality report" in hint.advice


def test_a_training_that_learned_nothing_is_not_told_to_go_on_longer():
    rows = history([0.7, 0.7, 0.69, 0.69, 0.69], [0.8, 0.75, 0.72, 0.71, 0.66], val_auc=0.5)
    assert codes(rows, epochs=5, succeeded=True, test_auc=0.5) == ["not-learning"]


def test_each_hint_says_what_to_do_and_has_a_form_for_programs():
    for hint in hints(history([0.69] * 5, [0.69] * 5, val_auc=0.5), classes=2, epochs=5):
        assert hint.to_json() == {
            "code": hint.code, "level": hint.level, "text": hint.text, "advice": WHAT_TO_DO[hint.code]
        }  # fmt: skip


figures = st.none() | st.floats(0, 10) | st.just(NAN) | st.just(math.inf)
rows_of_any_kind = st.lists(
    st.fixed_dictionaries(
        dict.fromkeys(("loss", "val_loss", "auc", "val_auc", "val_accuracy"), figures),
        optional={"stage": st.sampled_from(["", "head", "fine-tuning"]), "epoch": st.integers(1, 50)},
    ),
    max_size=12,
)


@given(rows_of_any_kind, st.integers(2, 9), st.booleans())
def test_no_history_is_too_odd_to_be_read(rows, classes, succeeded):
    for hint in hints(rows, classes=classes, epochs=12, succeeded=succeeded, test_auc=0.5):
        assert hint.advice and hint.text and hint.level in ("problem", "advice", "fine")


# -- The same words in the guide


def test_the_guide_says_what_the_platform_says(world, client, alice):
    """Also the four classic troubles: not prepared, does not start, out of memory, low accuracy."""
    guide = " ".join((settings.BASE_DIR / "docs/user-guide.md").read_text().split())
    for code, sign in SIGNS.items():
        assert f"| {sign} | {WHAT_TO_DO[code]} |" in guide, code
    assert set(SIGNS) == set(WHAT_TO_DO)
    not_prepared = preflight(DatasetFactory(), "Custom_CNN", PRESETS["quick"].configuration, None).checks[0]
    assert not_prepared.text.startswith("Dataset not prepared") and not_prepared.advice in guide
    assert NO_WORKER in guide
    assert _out_of_memory(world.run).hint in guide
    assert PLENTY_OF_MEMORY in guide
    client.force_login(alice)
    page = html.unescape(client.get("/guide/").content.decode())
    assert all(sign in page and WHAT_TO_DO[code] in page for code, sign in SIGNS.items())
