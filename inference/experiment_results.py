"""The results of an experiment as pages, API and command show them: rows of the database, figures, and words."""

from typing import Any

import numpy as np
from django.db.models import Count

from . import experiment_report as reports
from .assignment import subject_of
from .experiments import CHALLENGER, CHAMPION, NEWEST, answers_of, dropped_of, failures_of, rails
from .models import Experiment, Verdict

_OF_ANSWER = ("pk", "decision", "probabilities", "study_uid", "patient_key", "image_digest")


def state_of(experiment: Experiment) -> dict[str, Any]:
    """Volumes, errors and latency so far; cheap enough to be asked for every few seconds."""
    seen = rails(experiment)
    answers = {side: answers_of(experiment, side).count() for side in (CHAMPION, CHALLENGER)}
    judged = Verdict.objects.filter(prediction__experiment=experiment).aggregate(
        answers=Count("prediction", distinct=True)
    )
    return {
        "champion_answers": answers[CHAMPION],
        "challenger_answers": answers[CHALLENGER],
        "challenger_failures": failures_of(experiment).count(),
        "challenger_left_out": dropped_of(experiment).count(),
        "judged": judged["answers"],
        "newest": NEWEST,
        "error_rate": seen.error_rate,
        "champion_ms": seen.champion_ms,
        "challenger_ms": seen.challenger_ms,
        "latency_ratio": seen.latency_ratio,
    }


def report_of(experiment: Experiment) -> dict[str, Any]:
    """The figures and what follows from them; see `experiment_report`. `conclusion` and `notes` are for people."""
    task = _task(experiment)
    report = _paired(experiment, task) if experiment.is_shadow else _arms(experiment, task)
    report["classes"] = list(task.classes)
    report["positive_class"] = None if task.positive is None else task.classes[task.positive]
    report["conclusion"] = _conclusion(experiment, report)
    report["cautions"] = _cautions(experiment, report)
    report["notes"] = _notes(experiment, report)
    return report


def _task(experiment: Experiment) -> reports.Task:
    champion = experiment.champion
    positive = champion.classes.index(champion.positive_class) if _has_finding(experiment) else None
    return reports.Task(tuple(champion.classes), positive)


def _has_finding(experiment: Experiment) -> bool:
    return len(experiment.champion.classes) == 2 and bool(experiment.champion.positive_class)


def _paired(experiment: Experiment, task: reports.Task) -> dict[str, Any]:
    shadows = answers_of(experiment, CHALLENGER).filter(shown=False, paired_with__version=experiment.champion_id)
    columns = ("decision", "probabilities", *(f"paired_with__{name}" for name in _OF_ANSWER))
    rows = list(shadows.order_by("paired_with__created_at", "pk").values_list(*columns))
    places, verdicts = _places(task), _verdicts(experiment)
    finding = None if task.positive is None else task.classes[task.positive]
    return reports.paired_report(
        task,
        champion=[places[row[3]] for row in rows],
        challenger=[places[row[0]] for row in rows],
        truth=[places.get(verdicts.get(row[2], ""), reports.UNKNOWN) for row in rows],
        subjects=_numbered([subject_of(*row[5:8]) for row in rows]),
        scores=None if finding is None else ([row[4][finding] for row in rows], [row[1][finding] for row in rows]),
    )


def _arms(experiment: Experiment, task: reports.Task) -> dict[str, Any]:
    verdicts = _verdicts(experiment)
    sides = (_side(experiment, task, verdicts, variant) for variant in (CHAMPION, CHALLENGER))
    return reports.arms_report(task, *sides, share=experiment.share / 100)


def _side(experiment: Experiment, task: reports.Task, verdicts: dict[Any, str], variant: str) -> reports.Side:
    columns = ("pk", "decision", "study_uid", "patient_key", "image_digest")
    rows = list(answers_of(experiment, variant).filter(shown=True).order_by("created_at", "pk").values_list(*columns))
    places = _places(task)
    truth = [places.get(verdicts.get(row[0], ""), reports.UNKNOWN) for row in rows]
    return reports.Side(
        np.array([places[row[1]] for row in rows], np.int64),
        np.array(truth, np.int64),
        _numbered([subject_of(*row[2:5]) for row in rows]),
    )


def _places(task: reports.Task) -> dict[str, int]:
    return {name: index for index, name in enumerate(task.classes)}


def _verdicts(experiment: Experiment) -> dict[Any, str]:
    """By the number of an answer the newest word of a reader about it."""
    rows = Verdict.objects.filter(prediction__experiment=experiment).order_by("pk")
    return dict(rows.values_list("prediction_id", "label"))


def _numbered(subjects: list[str]) -> np.ndarray:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(subject, len(numbers)) for subject in subjects], np.int64)


# -- In words


def _conclusion(experiment: Experiment, report: dict[str, Any]) -> str:
    decision = report["decision"]
    if decision["for"] == reports.OPEN:
        return f"Not enough data to decide. {_outlook(report)}"
    winner = experiment.challenger if decision["for"] == reports.CHALLENGER else experiment.champion
    words = f"{winner} is right more often, by more than chance even if this page is looked at every day."
    if decision["for"] == reports.CHALLENGER:
        return f"The challenger is better. {words}"
    return f"The champion is better. {words} Stop the experiment; the challenger has no advantage to show."


def _outlook(report: dict[str, Any]) -> str:
    """How many more verdicts would do, said as the rough guess that it is."""
    decision, studies = report["decision"], _counted(report["judged"], "study has", "studies have")
    if decision["more"] is None:
        return (
            f"{studies} a verdict so far. With at least {reports.FEW}{'' if 'mcnemar' in report else ' on each side'} "
            "it can be estimated how many it takes."
        )
    found = abs(report["difference"]["difference"])
    points = f"{100 * decision['sought']:.1f} percentage points"
    basis = (
        f"If the two go on to differ by {points}, as they do now,"
        if found >= reports.RELEVANT
        else f"They differ by {100 * found:.1f} points so far, which is as good as nothing. To find one of {points}"
    )
    return f"{studies} a verdict so far. {basis} it takes about {decision['more']:,} more verdicts, at a guess."


def _cautions(experiment: Experiment, report: dict[str, Any]) -> list[str]:
    """What speaks against the winner although it is right more often."""
    found = []
    for name in ("sensitivity", "specificity"):
        before, after = (report[side][name] for side in (reports.CHAMPION, reports.CHALLENGER))
        known = before and after and None not in (before["value"], after["value"])
        if known and after["value"] < before["value"]:
            found.append(
                f"The challenger's {name} is lower so far: {100 * after['value']:.1f} % instead of "
                f"{100 * before['value']:.1f} %. Weigh whether that can be accepted."
            )
    return found


def _notes(experiment: Experiment, report: dict[str, Any]) -> list[str]:
    shadow = experiment.is_shadow
    saw = (
        "Readers saw the champion's answer before they gave their verdict and tend to follow it, which favours the "
        "champion."
        if shadow
        else "Readers saw the answer that they judged and tend to follow it, which makes both sides look better."
    )
    method = (
        "McNemar's test for paired answers; verdicts still needed after Connor (1987)"
        if shadow
        else "a 99.9 % interval after Newcombe (1998); verdicts still needed after Chow, Shao and Wang (2008)"
    )
    judged, studies = report["judged"], report["studies"]
    return [
        f"Only answers with a verdict count: {judged:,} of {_counted(studies, 'study', 'studies')}. Which answers "
        "readers judge is no random choice, so that the figures may not hold for the others.",
        saw,
        "A study counts once, with its first answer that has a verdict; of several verdicts the newest counts.",
        "Who looks at running figures every day finds a chance difference sooner or later. So a decision needs "
        f"p < 0.001 at whichever look (Haybittle 1971, Peto 1976), by {method}, at a power of 80 %. The 95 % intervals "
        "are those of a single look.",
    ]


def _counted(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"
