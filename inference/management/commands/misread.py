"""`manage.py misread CONDITION VERSION`: the images behind an evaluation's confusion matrix, and labels called wrong.

The twin of the page "Images behind": the same images in the same order, the same entry in the audit log.
"""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from datasets.models import COMMENT_LENGTH
from inference.evaluation_api import SeenSerializer
from inference.looking import Inside, Seen
from registry.models import Evaluation, EvaluationUnusable, ModelVersion
from xrayplatform import audit
from xrayplatform.commands import PlatformCommand
from xrayplatform.jobs import JobError

MOST_IMAGES = 1000


class Command(PlatformCommand):
    permission = "registry.view_evaluation"
    help = "List the images of a cell of a confusion matrix, by default all errors; or say that a label is wrong."

    def add_arguments(self, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("condition", help="the condition's slug")
        parser.add_argument("version", type=int, help="the version's number")
        parser.add_argument("--evaluation", type=int, metavar="N", help="default: the newest on its own test part")
        parser.add_argument("--true", default="", metavar="CLASS", help="only images of this class")
        parser.add_argument("--predicted", default="", metavar="CLASS", help="only images that were called this")
        parser.add_argument("--limit", type=int, default=20, help="images to list at most (default 20)")
        parser.add_argument("--flag", type=int, metavar="POSITION", help="call the label of this image wrong")
        parser.add_argument("--label", default="", metavar="CLASS", help="with --flag: the right class, if it is known")
        parser.add_argument("--comment", default="", metavar="TEXT", help="with --flag: what speaks against the label")

    def run(self, options: dict[str, Any]) -> dict[str, Any]:
        by = self.actor(options)
        flagging = options["flag"] is not None
        _need_right(by, "datasets.flag_datasetimage" if flagging else "datasets.view_datasetimage")
        _check(options)
        try:
            version = ModelVersion.objects.seen_by(by).numbered(options["condition"], options["version"])
            evaluation = Evaluation.objects.chosen(version, Evaluation.Kind.TEST.value, options["evaluation"])
            inside = Inside(evaluation, by)
            return _flagged(inside, options) if flagging else _listed(inside, options)
        except (ModelVersion.DoesNotExist, Evaluation.DoesNotExist, EvaluationUnusable) as error:
            raise CommandError(str(error)) from error

    def show(self, result: dict[str, Any]) -> None:
        if "flagged" in result:
            image = result["flagged"]
            self.stdout.write(f"Noted for {image['path']}: {image['flag']}")
            return
        count, shown = result["count"], len(result["images"])
        some = f", {shown} of them below" if shown < count else ""
        self.stdout.write(f"{count:,} image{'' if count == 1 else 's'} of evaluation {result['evaluation']}{some}")
        if result["problem"]:
            self.stdout.write(f"! {result['problem']}")
        for image in result["images"]:
            self.stdout.write(_in_words(image))


def _need_right(by: Any, permission: str) -> None:
    if by is not None and not by.has_perm(permission):
        raise CommandError(f"{by} has no role that allows this ({permission}).")


def _check(options: dict[str, Any]) -> None:
    if not 1 <= options["limit"] <= MOST_IMAGES:
        raise CommandError(f"The limit must lie between 1 and {MOST_IMAGES}.")
    if options["flag"] is None and (options["label"] or options["comment"]):
        raise CommandError("A label and a comment go with --flag, which names the image by its position.")
    if len(options["comment"]) > COMMENT_LENGTH:
        raise CommandError(f"The comment is too long; {COMMENT_LENGTH} characters at most.")


def _listed(inside: Inside, options: dict[str, Any]) -> dict[str, Any]:
    chosen = {name: _class(inside, options[name]) for name in ("true", "predicted")}
    positions = inside.positions(**chosen)
    images = inside.seen(positions[: options["limit"]])
    audit.record(
        "evaluation.view_images", inside.evaluation, actor=inside.user, after={**chosen, "limit": options["limit"]}
    )
    return {
        "evaluation": inside.evaluation.pk,
        **chosen,
        "count": len(positions),
        "problem": inside.source.problem,
        "images": SeenSerializer(images, many=True).data,
    }


def _class(inside: Inside, name: str) -> str:
    if name and name not in inside.classes:
        raise CommandError(f"{inside.evaluation.version} knows no class {name}. There are {', '.join(inside.classes)}.")
    return name


def _flagged(inside: Inside, options: dict[str, Any]) -> dict[str, Any]:
    seen = _one(inside, options["flag"])
    noticed = f"{inside.evaluation.version} {seen.in_words}"
    try:
        seen.image.flag_label(options["label"], options["comment"], by=inside.user, seen=noticed)
    except JobError as error:
        raise CommandError(f"{error} {error.hint}".strip()) from error
    return {"evaluation": inside.evaluation.pk, "flagged": SeenSerializer(inside.one(seen.position)).data}


def _one(inside: Inside, position: int) -> Seen:
    try:
        seen = inside.one(position)
    except IndexError as error:
        raise CommandError(f"The evaluation has no image at position {position}.") from error
    if seen.image is None:
        raise CommandError(seen.problem)
    return seen


def _in_words(image: dict[str, Any]) -> str:
    chances = ", ".join(f"{name} {chance:.3f}" for name, chance in image["probabilities"].items())
    said = f"{image['true']} called {image['predicted']}"
    flag = f" ! {image['flag']}" if image["flag"] else ""
    return f"{image['position']:6d} {image['path'] or image['problem']}: {said} ({chances}){flag}"
