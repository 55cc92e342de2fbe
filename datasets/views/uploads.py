"""Pages: upload images into a dataset or a new folder, and what became of them."""

from typing import Any

from django import forms
from django.conf import settings
from django.core.exceptions import TooManyFilesSent
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest
from xrayplatform.jobs import JobError
from xrayplatform.teams import Team

from ..archives import MAX_MEMBERS, TAKEN
from ..models import Dataset, Upload
from ..models.upload import why_closed
from ..receiving import FIELD, Inbox, receiving, require_room
from ..uploading import image_folders
from .datasets import visible_dataset

MAX_CHOICES = 500
EARLIER = 10


class ImagesInput(forms.FileInput):
    allow_multiple_selected = True


class ImagesField(forms.FileField):
    """One or more files."""

    widget = ImagesInput

    def clean(self, data: Any, initial: Any = None) -> list[Any]:
        files = data if isinstance(data, list) else [data] if data else []
        if not files:
            return [super().clean(None, initial)]
        return [super(ImagesField, self).clean(file, initial) for file in files]


class UploadForm(forms.Form):
    files = ImagesField(
        label="Images or zip archives",
        allow_empty_file=True,
        widget=ImagesInput(attrs={"accept": ",".join([*TAKEN, ".zip"])}),
    )


class DatasetUploadForm(UploadForm):
    """Into a dataset: a folder that it has, or a new one."""

    class_folder = forms.ChoiceField(label="Class", required=False)
    new_class = forms.CharField(
        label="Or a new class",
        required=False,
        max_length=200,
        help_text="The name of its folder, such as fracture, or train/fracture where there are split folders.",
    )

    def __init__(self, *args: Any, dataset: Dataset, **options: Any) -> None:
        super().__init__(*args, **options)
        folders = sorted(image_folders(dataset) - {""})[:MAX_CHOICES]
        as_is = "Beside the other images" if dataset.layout == "images-csv" else "As the folders in the archive say"
        self.fields["class_folder"].choices = [("", as_is), *((folder, folder) for folder in folders)]

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if data.get("class_folder") and data.get("new_class"):
            self.add_error("new_class", "Choose a class or name a new one, not both.")
        return data

    @property
    def options(self) -> dict[str, Any]:
        return {"class_folder": self.cleaned_data["class_folder"] or self.cleaned_data["new_class"]}


class NewDatasetForm(UploadForm):
    """Into a new folder, which becomes a dataset of a team."""

    name = forms.CharField(
        label="Name of the new folder",
        max_length=400,
        help_text="Such as wrist fracture 2024, or CHEST/new study with the body part above it.",
    )
    new_class = forms.CharField(
        label="Class",
        required=False,
        max_length=200,
        help_text="Only where all files are of one class; leave it empty for an archive with class folders.",
    )
    team = forms.ModelChoiceField(
        Team.objects.none(), required=False, help_text="Nobody else sees the dataset. Without a team everybody does."
    )
    field_order = ["name", "team", "new_class", "files"]

    def __init__(self, *args: Any, user: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        teams = user.teams.all()
        self.fields["team"].queryset = teams
        self.fields["team"].initial = teams.first()
        # Somebody of a team must not make an image visible to all by leaving a field empty.
        self.fields["team"].required = bool(teams)
        if teams:
            self.fields["team"].empty_label = None
        else:
            del self.fields["team"]

    @property
    def options(self) -> dict[str, Any]:
        data = self.cleaned_data
        return {"name": data["name"], "class_folder": data["new_class"], "team": data.get("team")}


# The token is checked in `_take`: checking reads the body, and where its files go must be settled before that.
@csrf_exempt
@allow("datasets.upload_dataset")
@require_http_methods(["GET", "POST"])
def upload_create(request: HttpRequest, pk: int) -> HttpResponse:
    """Upload into a dataset."""
    return _create(request, visible_dataset(request, pk))


@csrf_exempt
@allow("datasets.upload_dataset")
@require_http_methods(["GET", "POST"])
def upload_new(request: HttpRequest) -> HttpResponse:
    """Upload into a new folder."""
    return _create(request, None)


upload_create.takes_archives = upload_new.takes_archives = True  # type: ignore[attr-defined]


def _create(request: HttpRequest, dataset: Dataset | None) -> HttpResponse:
    if request.method == "GET":
        return _page(request, dataset, _form(request, dataset))
    with receiving(request) as inbox:
        try:
            closed = why_closed(dataset)
            if closed:
                raise closed
            require_room(request)
            return _take(request, dataset, inbox)
        except JobError as error:
            return _page(request, dataset, _form(request, dataset), status=409, error=f"{error} {error.hint}")
        except TooManyFilesSent:
            error = f"More than {settings.DATA_UPLOAD_MAX_NUMBER_FILES:,} files were sent at once. Send them as a zip."
            return _page(request, dataset, _form(request, dataset), status=400, error=error)


@csrf_protect
def _take(request: HttpRequest, dataset: Dataset | None, inbox: Inbox) -> HttpResponse:
    form = _form(request, dataset, request.POST, request.FILES)
    if not form.is_valid():
        return _page(request, dataset, form, status=400)
    try:
        with transaction.atomic():
            upload = inbox.submit(request.user, dataset=dataset, **form.options)
            upload.enqueue()
    except JobError as error:
        form.add_error(None, f"{error} {error.hint}")
        return _page(request, dataset, form, status=409)
    return redirect(upload)


def _form(request: HttpRequest, dataset: Dataset | None, *data: Any) -> Any:
    return DatasetUploadForm(*data, dataset=dataset) if dataset else NewDatasetForm(*data, user=request.user)


def _page(
    request: HttpRequest, dataset: Dataset | None, form: UploadForm, status: int = 200, error: str = ""
) -> HttpResponse:
    uploads = Upload.objects.visible_to(request.user).filter(dataset=dataset).select_related("created_by")
    teams = [dataset.condition.team] if dataset else list(request.user.teams.all()) or [None]
    context = {
        "dataset": dataset,
        "form": form,
        "field": FIELD,
        "error": error,
        "closed": why_closed(dataset),
        "uploads": uploads[:EARLIER],
        "quotas": [(team, Upload.quota(team)) for team in teams],
        "max_files": settings.DATA_UPLOAD_MAX_NUMBER_FILES,
        "max_members": MAX_MEMBERS,
        "max_bytes": max(settings.MAX_ARCHIVE_MB, settings.MAX_UPLOAD_MB) * 1024 * 1024,
        "tab": "upload",
    }
    return render(request, "datasets/upload_create.html", context, status=status)


def visible_upload(request: HttpRequest, pk: int) -> Upload:
    uploads = Upload.objects.visible_to(request.user).select_related("dataset__condition", "created_by")
    return get_object_or_404(uploads, pk=pk)


@allow("datasets.view_upload")
@require_GET
def upload_detail(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    upload = visible_upload(request, pk)
    template = "datasets/_upload.html" if request.htmx else "datasets/upload_detail.html"
    context = {"upload": upload, "dataset": upload.dataset, "found": _visible_found(request, upload), "tab": "upload"}
    return render(request, template, context)


def _visible_found(request: HttpRequest, upload: Upload) -> Dataset | None:
    found = upload.found
    return found if found and Dataset.objects.visible_to(request.user).filter(pk=found.pk).exists() else None


@allow("datasets.upload_dataset")
@require_POST
def upload_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    upload = visible_upload(request, pk)
    upload.request_cancel(request.user)
    return redirect(upload)
