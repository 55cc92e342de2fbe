"""The class activation map of a stored answer, and that it lies on the radiograph where the model saw it."""

from io import BytesIO

import numpy as np
import pytest
from django.urls import reverse
from PIL import Image

from inference import maps, viewing
from inference.activation import Grid, contrast
from inference.engine import Engine, Reading
from inference.models import Prediction, prediction
from inference.models.prediction import model_of
from tests.factories import ConditionFactory, PredictionFactory
from tests.inference.answered import analysed, film, in_service, pixels_of
from xrayplatform.audit import AuditEntry

PICTURE_GRID = Grid(0.5, 1.0)


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setattr(prediction, "ENGINE", Engine())


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team)


@pytest.fixture
def fetch(client, bob):
    client.force_login(bob)

    def fetch(answer, **query):
        return client.get(reverse("inference:prediction-map", args=[answer.pk]), query)

    return fetch


def strongest(picture):
    """(row, column) of the strongest evidence, as shares of height and width."""
    opacity = picture[..., 3]
    row, column = np.unravel_index(opacity.argmax(), opacity.shape)
    return (row + 0.5) / opacity.shape[0], (column + 0.5) / opacity.shape[1]


def at(share):
    return pytest.approx(share, abs=0.04)


# -- Where it lies


@pytest.mark.parametrize("fit", ["pad", "stretch"])
@pytest.mark.parametrize("shape", [(48, 120), (120, 48), (64, 64)], ids=["wide", "tall", "square"])
@pytest.mark.parametrize("corner", [(0.15, 0.1), (0.15, 0.9), (0.85, 0.1), (0.85, 0.9)])
def test_a_bright_spot_in_a_corner_lies_where_the_map_says(chest, alice, fetch, fit, shape, corner):
    in_service(chest, alice, preprocessing={"id": "grey", "version": 1, "fit": fit})
    spot = (int(corner[0] * shape[0]), int(corner[1] * shape[1]))
    picture = pixels_of(fetch(analysed(chest, alice, film(*shape, spot=spot)), **{"class": "PNEUMONIA"}))
    found = strongest(picture)
    assert found == (at(corner[0]), at(corner[1]))
    # It is stretched over the radiograph as it is, so it must have the same proportions.
    assert picture.shape[1] / picture.shape[0] == pytest.approx(shape[1] / shape[0], rel=0.03)


def test_where_borders_were_cropped_the_map_lies_on_what_was_left(chest, alice, fetch):
    treatment = {"id": "grey-pad", "version": 2, "fit": "pad", "steps": ["crop_borders"]}
    in_service(chest, alice, preprocessing=treatment)
    # The picture takes the right lower part; everything left and above of it is the black of the collimator.
    framed = np.zeros((100, 160), np.uint8)
    framed[20:, 30:] = film(80, 130, spot=(12, 117))
    picture = pixels_of(fetch(analysed(chest, alice, framed), **{"class": "PNEUMONIA"}))
    assert strongest(picture) == (at((20 + 12) / 100), at((30 + 117) / 160))
    height, width = picture.shape[:2]
    assert not picture[: int(0.18 * height), :, 3].any() and not picture[:, : int(0.17 * width), 3].any()


def test_the_bars_beside_the_picture_are_no_part_of_its_map():
    evidence = np.zeros((64, 64), np.float32)
    evidence[:10] = 1.0  # above the picture
    evidence[30, 5] = 0.5
    laid = maps.over_picture(evidence, 64, PICTURE_GRID, shape=(32, 64), fit="pad")
    whole = maps.heat(evidence, 64, PICTURE_GRID)
    assert opacity(whole).max() == round(255 * maps.OPACITY)
    assert opacity(laid).shape == (32, 64)
    # Colours are those of the whole input: what is weak beside the bars stays weak.
    assert opacity(laid).max() == opacity(whole)[16:48].max() < 0.6 * opacity(whole).max()


def opacity(png):
    return np.asarray(Image.open(BytesIO(png)))[..., 3]


# -- What it says


def test_it_comes_from_the_pass_that_gave_the_probabilities_and_needs_no_model(chest, alice, fetch, monkeypatch):
    version = in_service(chest, alice)
    answer = analysed(chest, alice)
    model = model_of(version)
    stored = contrast(viewing._contributions(answer), 1)
    # The mean of the map and the biases are the difference of the logits, before the temperature.
    logit = np.log(answer.probabilities["PNEUMONIA"] / answer.probabilities["NORMAL"])
    assert stored.mean() - 4.0 == pytest.approx(logit, abs=0.01)
    assert model.has_maps
    monkeypatch.setattr(prediction, "_loaded", None)
    pixels_of(fetch(answer, **{"class": "PNEUMONIA"}))


def test_the_stored_map_and_that_of_a_reading_are_made_by_one_formula():
    contributions = np.random.default_rng(3).normal(size=(4, 3, 5, 5)).astype(np.float32)
    classes = np.array([0, 2, 1, 2])
    reading = Reading(np.ones((4, 3)), np.ones((4, 3)), contributions, None, PICTURE_GRID)
    for number, name in enumerate(classes):
        alone = contributions[number]
        by_hand = alone[name] - np.delete(alone, name, axis=0).mean(axis=0)
        np.testing.assert_allclose(reading.maps(classes)[number], by_hand, atol=1e-5)
        np.testing.assert_allclose(contrast(contributions, classes)[number], by_hand, atol=1e-5)


def test_of_two_classes_only_one_has_evidence_in_a_spot(chest, alice, fetch):
    in_service(chest, alice)
    answer = analysed(chest, alice)
    assert pixels_of(fetch(answer, **{"class": "PNEUMONIA"}))[..., 3].max() > 100
    assert not pixels_of(fetch(answer, **{"class": "NORMAL"}))[..., 3].any()


def test_without_a_class_it_is_that_of_the_decision(chest, alice, fetch):
    in_service(chest, alice)
    answer = analysed(chest, alice)
    assert fetch(answer).content == fetch(answer, **{"class": answer.decision}).content


def test_the_whole_of_what_the_model_saw_can_be_had_too(chest, alice, fetch):
    in_service(chest, alice)
    assert pixels_of(fetch(analysed(chest, alice), **{"class": "PNEUMONIA", "of": "input"})).shape == (64, 64, 4)


# -- Who may, and when there is none


def test_a_class_that_the_version_does_not_know_and_an_answer_without_maps_are_not_found(chest, alice, fetch):
    version = in_service(chest, alice)
    assert fetch(analysed(chest, alice), **{"class": "FRACTURE"}).status_code == 404
    without = PredictionFactory(version=version)
    response = fetch(without)
    assert response.status_code == 404
    assert response.content.decode() == "The version that answered has no class activation maps."


def test_another_team_gets_no_map_and_no_cache_keeps_one(chest, alice, fetch, client, charlie):
    in_service(chest, alice)
    answer = analysed(chest, alice)
    assert fetch(answer)["Cache-Control"] == "private, no-store"
    client.force_login(charlie)
    assert fetch(answer).status_code == 404


def test_maps_alone_are_in_the_audit_log_once_within_minutes(chest, alice, bob, fetch):
    in_service(chest, alice)
    answer = analysed(chest, alice)
    for name in ("NORMAL", "PNEUMONIA", "NORMAL"):
        fetch(answer, **{"class": name})
    entry = AuditEntry.objects.get(action="prediction.view")
    assert (entry.actor, entry.object_id, entry.after) == (bob, str(answer.pk), {"pictures": True})
    assert Prediction.objects.count() == 1
