"""The page of one prediction: the radiograph, the answer in words, the checks before it, and the study's history."""

import re
from uuid import uuid4

import numpy as np
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse

from datasets import imaging
from inference import gate, radiographs, viewing, windowing
from inference.engine import Engine
from inference.models import Batch, BatchItem, Experiment, Prediction, ServingPolicy, Verdict, prediction
from tests.datasets.files import encode
from tests.factories import ConditionFactory, ModelVersionFactory, PredictionFactory, TeamFactory
from tests.inference.answered import analysed, film, fine_dicom, in_service, pixels_of
from xrayplatform.audit import AuditEntry

HTMX = {"HX-Request": "true"}
UPLOAD = reverse("inference:prediction-create")


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setattr(prediction, "ENGINE", Engine())
    viewing._levels.cache_clear()


@pytest.fixture
def chest(team):
    return ConditionFactory(slug="chest", name="Chest", team=team, intended_use="For research by trained readers.")


@pytest.fixture
def version(chest, alice):
    return in_service(chest, alice)


@pytest.fixture
def browser(client, bob):
    client.force_login(bob)
    return client


@pytest.fixture
def page(browser):
    """The text of an answer's page."""

    def page(answer, **query):
        response = browser.get(answer.get_absolute_url(), query)
        assert response.status_code == 200
        return response.content.decode()

    return page


@pytest.fixture
def picture(browser):
    def picture(answer, **query):
        return browser.get(reverse("inference:prediction-image", args=[answer.pk]), query)

    return picture


def upload(browser, content, **options):
    sent = {"condition": "chest", "image": SimpleUploadedFile("film.png", content)}
    return browser.post(UPLOAD, sent, **options)


# -- The way to the page


def test_the_browser_goes_to_the_record_and_sees_the_same_as_in_the_answer_to_the_upload(version, browser, page):
    swapped = upload(browser, encode(film(), "PNG"), headers=HTMX)
    answer = Prediction.objects.get()
    assert swapped["HX-Push-Url"] == answer.get_absolute_url()
    assert (swapped["HX-Retarget"], swapped["HX-Reswap"]) == ("#page", "innerHTML show:window:top")
    at_once, later = swapped.content.decode(), page(answer)
    assert "<html" not in at_once
    for part in ("Answer", "Radiograph", "Readers' verdicts", "Other answers", "Record", "Keys"):
        assert re.search(f"<h2[^>]*>{part}", at_once) and re.search(f"<h2[^>]*>{part}", later)
    assert upload(browser, encode(film(), "PNG")).url == Prediction.objects.first().get_absolute_url()


def test_neither_the_page_nor_its_pictures_stay_in_a_cache(version, browser, picture, bob):
    answer = analysed(version.condition, bob)
    assert browser.get(answer.get_absolute_url())["Cache-Control"] == "private, no-store"
    assert picture(answer)["Cache-Control"] == "private, no-store"
    assert upload(browser, encode(film(), "PNG"), headers=HTMX)["Cache-Control"] == "private, no-store"


def test_a_view_of_the_page_with_its_pictures_is_one_entry(version, bob, alice, page, picture):
    answer = analysed(version.condition, alice)
    page(answer)
    for center in (30, 40, 50):
        picture(answer, center=center, width=20)
    entry = AuditEntry.objects.get(action="prediction.view")
    assert (entry.actor, entry.object_id, entry.after) == (bob, str(answer.pk), None)


def test_the_picture_without_its_page_is_an_entry_too(version, alice, picture):
    picture(analysed(version.condition, alice))
    assert AuditEntry.objects.get(action="prediction.view").after == {"pictures": True}


@pytest.mark.parametrize("name", ["detail", "image", "map"])
def test_another_team_and_the_answer_of_a_shadow_are_not_found(version, browser, alice, charlie, name):
    answer = analysed(version.condition, alice)
    shadow = PredictionFactory(version=version, id=uuid4(), shown=False, paired_with=answer)
    assert browser.get(reverse(f"inference:prediction-{name}", args=[shadow.pk])).status_code == 404
    browser.force_login(charlie)
    assert browser.get(reverse(f"inference:prediction-{name}", args=[answer.pk])).status_code == 404


# -- The picture


def test_the_picture_is_the_radiograph_itself(version, bob, picture):
    pixels = film(60, 90)
    answer = analysed(version.condition, bob, pixels)
    np.testing.assert_array_equal(pixels_of(picture(answer)), pixels)
    np.testing.assert_array_equal(pixels_of(picture(answer, full=1)), pixels)
    np.testing.assert_array_equal(pixels_of(picture(answer, invert=1)), 255 - pixels)


def test_a_large_picture_comes_reduced_and_on_request_in_its_own_size(version, bob, picture):
    answer = analysed(version.condition, bob, film(300, 2400))
    assert pixels_of(picture(answer)).shape == (256, 2048)
    assert pixels_of(picture(answer, full=1)).shape == (300, 2400)


def test_a_narrow_window_shows_what_8_bits_would_have_lost(chest, version, bob, picture):
    ServingPolicy.objects.update(on_contrast="warn")
    # Values of 12 bits, 2048 to 2111 from left to right: in 8 bits there would be 4 or 5 steps of them.
    values = np.tile(2048 + np.repeat(np.arange(64, dtype=np.uint16), 2), (64, 1))
    answer = Prediction.objects.analyse(chest, fine_dicom(values), by=bob).prediction
    assert len(np.unique(pixels_of(picture(answer)))) <= 5
    shown = pixels_of(picture(answer, center=100 * (2048 + 31.5) / 4095, width=100 * 64 / 4095))
    assert len(np.unique(shown)) == 64
    assert shown[0, 0] < 5 and shown[0, -1] > 250
    assert np.all(np.diff(shown[0].astype(int)) >= 0)


def test_window_and_level_are_what_they_say():
    grey = np.array([[0, 16384, 32768, 49151, 65535]], np.uint16)
    window = windowing.Window.parsed
    np.testing.assert_array_equal(windowing.windowed(grey, window("", "")), [[0, 64, 128, 191, 255]])
    np.testing.assert_array_equal(windowing.windowed(grey, window("50", "50")), [[0, 0, 128, 255, 255]])
    np.testing.assert_array_equal(windowing.windowed(grey, window("25", "50")), [[0, 128, 255, 255, 255]])
    np.testing.assert_array_equal(windowing.windowed(grey, window("50", "50", True)), [[255, 255, 127, 0, 0]])


@pytest.mark.parametrize(
    "query", [{"width": 0}, {"width": "nan"}, {"center": "inf"}, {"center": "wide"}, {"width": 1e9}]
)
def test_a_window_that_cannot_be_is_refused_for_the_picture_and_ignored_by_the_page(version, bob, page, picture, query):
    answer = analysed(version.condition, bob)
    assert picture(answer, **query).status_code == 400
    assert "center=50.0&amp;width=100.0" in page(answer, **query)


def test_without_scripts_the_page_itself_shows_the_window_and_the_map_that_its_form_asks_for(version, bob, page):
    content = page(analysed(version.condition, bob), center=40, width=20, invert=1, map="NORMAL")
    assert "center=40.0&amp;width=20.0&amp;invert=1" in content and "class=NORMAL" in content
    assert "class=" not in re.findall(r"<image data-heat[^>]*>", page(Prediction.objects.get(), map=""))[0]


def test_a_picture_that_is_not_kept_any_more_is_explained_and_the_answer_stays(version, bob, page, picture):
    answer = analysed(version.condition, bob)
    radiographs.file_of(answer.image_digest).unlink()
    content = page(answer)
    assert "radiographs are kept for 90 days" in content and "<image" not in content
    assert answer.decision in content and "The probability of PNEUMONIA" in content
    response = picture(answer)
    assert response.status_code == 404 and "radiographs are kept for 90 days" in response.content.decode()


def test_where_nothing_is_kept_the_answer_to_the_upload_shows_once_what_the_model_saw(version, browser, page, settings):
    settings.KEEP_RADIOGRAPHS_DAYS = 0
    at_once = upload(browser, encode(film(), "PNG"), headers=HTMX).content.decode()
    assert 'href="data:image/png;base64,' in at_once and "of=input" in at_once
    assert "The picture is not kept, and is gone with this page." in at_once
    later = page(Prediction.objects.get())
    assert "This platform does not keep the pictures that it analyses." in later and "<image" not in later


# -- The answer


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.full((64, 64), 5, np.uint8) + film(64, 64, (60, 60)), "below the threshold of 50.0"),
        (255 - film(64, 64) // 4, "reaches the threshold of 50.0"),
    ],
    ids=["NORMAL", "PNEUMONIA"],
)
def test_the_decision_is_explained_by_the_threshold_which_is_marked_on_the_bar(version, bob, page, pixels, words):
    answer = analysed(version.condition, bob, pixels)
    content = page(answer).replace("\u00a0", " ")
    probability = f"{100 * answer.probabilities['PNEUMONIA']:.1f} %"
    assert f"The probability of PNEUMONIA is {probability}" in content and words in content
    assert f"called {answer.decision}." in content
    assert re.findall(r'class="probability-mark" x1="([\d.]+)"', content) == ["50.00"]
    assert "For research by trained readers." in content


def test_of_several_classes_the_most_probable_is_called_and_no_bar_has_a_mark(chest, page):
    version = ModelVersionFactory(condition=chest, classes=["a", "b", "c"], positive_class="")
    chances = {"a": 0.2, "b": 0.5, "c": 0.3}
    content = page(PredictionFactory(version=version, probabilities=chances, decision="b", threshold=None))
    assert "b is the most probable class." in content and "probability-mark" not in content


def test_an_older_answer_names_the_version_that_is_in_service_now(chest, version, alice, bob, page):
    answer = analysed(chest, bob)
    assert "older answer" not in page(answer)
    in_service(chest, alice, slope=-8.0)
    content = page(answer)
    assert "This is an older answer by version 1." in content and "chest v2</a> is in service now" in content


def test_a_reader_is_not_told_which_side_of_an_experiment_answered(chest, version, alice, page):
    challenger = ModelVersionFactory(condition=chest, number=version.number + 1)
    experiment = Experiment.objects.create(
        condition=chest, champion=version, challenger=challenger, kind="ab", share=50, epoch=1, created_by=alice
    )
    content = page(PredictionFactory(version=challenger, experiment=experiment, variant="challenger"))
    assert "hallenger" not in content and "xperiment" not in content and "older answer" not in content


def test_what_a_version_learned_from_synthetic_images_says_so(chest, page):
    assert "Synthetic sample images" in page(PredictionFactory(version__condition=chest, version__synthetic=True))


# -- The checks before the model


def check(name, outcome, text):
    return {"check": name, "outcome": outcome, "value": None, "limit": None, "text": text}


def test_checks_that_fail_or_warn_come_first_each_with_a_word_and_the_rest_is_folded(chest, page):
    verdicts = [
        check("size", "pass", "Large enough."),
        check("inverted", "warn", "Seems to be a negative."),
        check("modality", "unknown", "Not said."),
        check("unlike", "fail", "Far from all."),
    ]
    content = page(PredictionFactory(version__condition=chest, gate=verdicts))
    places = [content.index(text) for text in ("Far from all.", "Seems to be a negative.", "<summary>1 check passed")]
    assert places == sorted(places) and places[-1] < content.index("Large enough.")
    assert "1 check passed, 1 could not be told" in content
    assert places[0] < content.index("The probability of PNEUMONIA")
    for words in ("Likeness to the training images: not fit.", "Negative: look.", "Size: passed."):
        assert words in content


def test_when_all_checks_pass_one_folded_line_says_so(chest, page):
    content = page(PredictionFactory(version__condition=chest, gate=[check("size", "pass", "Large enough.")]))
    assert "<summary>All checks of the picture passed" in content
    assert "<details open>" not in content


def test_a_refusal_shows_every_check_and_what_to_do(version, browser):
    # Colourful as a photograph.
    photograph = np.zeros((64, 64, 3), np.uint8)
    photograph[..., 0], photograph[:32, :, 1] = 220, 200
    response = upload(browser, encode(photograph, "PNG"), headers=HTMX)
    page = response.content.decode()
    assert response.status_code == 400 and "HX-Push-Url" not in response
    assert "as colourful as a photograph" in page and "Colour: not fit." in page
    assert "Kind of examination: not known." in page and "<details open>" in page
    assert "send it again, or read it without the model" in page
    assert not Prediction.objects.exists()


def test_a_negative_that_is_refused_is_called_one(version, browser, monkeypatch):
    ServingPolicy.objects.update(on_inverted="refuse")
    negative = gate.Verdict("inverted", "fail", 0.9, 0.5, "The picture seems to be a negative: export it again.")
    monkeypatch.setattr(gate, "judge", lambda *args: [negative])
    page = upload(browser, encode(film(), "PNG"), headers=HTMX).content.decode()
    assert "The picture seems to be a negative: export it again." in page and "Negative: not fit." in page


# -- The study


def test_other_answers_about_the_study_and_the_picture_are_listed_newest_first_with_verdicts(chest, page, alice):
    version = ModelVersionFactory(condition=chest)

    def make(**fields):
        return PredictionFactory(**{"version": version, "id": uuid4(), "image_digest": uuid4().hex} | fields)

    answer = make(study_uid="2.25.7", image_digest="a" * 64)
    of_study, same_picture = make(study_uid="2.25.7"), make(image_digest="a" * 64, study_uid="2.25.8")
    strangers = [make(study_uid="2.25.9"), make(study_uid="2.25.7", shown=False)]
    foreign = make(study_uid="2.25.7", version=ModelVersionFactory(condition__team=TeamFactory()))
    Verdict.objects.give(of_study, alice, False)
    content = page(answer)
    assert content.index(str(same_picture.pk)) < content.index(str(of_study.pk))
    assert "alice: NORMAL" in content and "another of the study" in content
    for other in (*strangers, foreign):
        assert str(other.pk) not in content


def test_answers_without_a_study_have_only_their_picture_in_common(chest, page):
    version = ModelVersionFactory(condition=chest)
    answer, other = (PredictionFactory(version=version, id=uuid4(), image_digest=digit * 64) for digit in "ab")
    assert str(other.pk) not in page(answer)


# -- What is known of the file


def test_what_a_dicom_file_says_is_shown_without_who_is_on_it(version, chest, bob, page):
    content = fine_dicom(
        film(64, 64).astype(np.uint16) * 16,
        PatientName="Mustermann^Erika", PatientID="HOSP-7", Modality="DX", BodyPartExamined="CHEST",
    )  # fmt: skip
    answer = Prediction.objects.analyse(chest, content, by=bob).prediction
    shown = page(answer)
    for expected in ("DX", "CHEST", answer.study_uid, "64 × 64 pixels", "stored as a pseudonym", answer.file_digest):
        assert expected in shown
    assert "Mustermann" not in shown and "HOSP-7" not in shown and answer.patient_key not in shown
    assert imaging.read(content).digest == answer.image_digest


# -- From one to the next


def test_the_next_of_a_batch_is_one_key_away_and_else_another_upload(chest, page):
    version = ModelVersionFactory(condition=chest)
    batch = Batch.objects.create(condition=chest, name="Night shift")
    answers = [PredictionFactory(version=version, id=uuid4(), batch=batch) for _ in range(2)]
    for position, answer in enumerate([answers[0], None, answers[1]]):
        BatchItem.objects.create(batch=batch, position=position, name=f"{position}.png", prediction=answer)
    first, last = (next_of(page(answer)) for answer in answers)
    assert first == answers[1].get_absolute_url()
    assert last == f"{UPLOAD}?condition=chest"


def next_of(content):
    return re.findall(r'href="([^"]+)" data-key="n"', content)[0]


@pytest.mark.parametrize(("days", "words"), [(30, "kept for 30 days"), (0, "The picture is not kept")])
def test_the_upload_page_says_what_is_kept(version, browser, settings, days, words):
    settings.KEEP_RADIOGRAPHS_DAYS = days
    assert words in browser.get(UPLOAD).content.decode()
