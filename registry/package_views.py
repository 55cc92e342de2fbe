"""Pages: receive a package, look at its label, import it, and follow that."""

from http import HTTPStatus
from uuid import UUID

from django.contrib import messages
from django.core.files.uploadhandler import TemporaryFileUploadHandler
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from xrayplatform.access import allow
from xrayplatform.http import HtmxHttpRequest, announced_length
from xrayplatform.jobs import JobError
from xrayplatform.system import NotEnoughDisk, require_disk

from .models import PackageImport, ReceivedPackage
from .package_forms import ImportForm, PackageForm
from .packages import PackageError

EARLIER = 10


# The token is checked in `_receive`: checking reads the body, and only those who may import are to send one.
@csrf_exempt
@allow("registry.add_packageimport")
@require_http_methods(["GET", "POST"])
def package_create(request: HttpRequest) -> HttpResponse:
    """Send a package. Its label comes first; nothing is imported yet."""
    if request.method == "GET":
        return _create_page(request, PackageForm())
    request.upload_handlers = [TemporaryFileUploadHandler(request)]
    try:
        require_disk(2 * announced_length(request))
    except NotEnoughDisk as error:
        return _create_page(request, PackageForm(), HTTPStatus.CONFLICT, error=str(error))
    return _receive(request)


package_create.takes_archives = True  # type: ignore[attr-defined]


@csrf_protect
def _receive(request: HttpRequest) -> HttpResponse:
    form = PackageForm(request.POST, request.FILES)
    if not form.is_valid():
        return _create_page(request, form, HTTPStatus.BAD_REQUEST)
    try:
        package = ReceivedPackage.objects.receive(form.cleaned_data["file"], by=request.user)
    except PackageError as error:
        return _create_page(request, PackageForm(), HTTPStatus.BAD_REQUEST, error=f"The package is refused: {error}")
    except JobError as error:
        return _create_page(request, PackageForm(), HTTPStatus.CONFLICT, error=f"{error} {error.hint}")
    return redirect(package)


def _create_page(
    request: HttpRequest, form: PackageForm, status: int = HTTPStatus.OK, *, error: str = ""
) -> HttpResponse:
    imports = PackageImport.objects.visible_to(request.user)
    context = {
        "form": form,
        "error": error,
        "undecided": ReceivedPackage.objects.undecided_by(request.user)[:EARLIER],
        "imports": imports.select_related("package", "created_by", "version__condition")[:EARLIER],
    }
    return render(request, "registry/package_create.html", context, status=status)


@allow("registry.add_packageimport")
@require_http_methods(["GET", "POST"])
def package_confirm(request: HttpRequest, pk: UUID) -> HttpResponse:
    """What the package says about itself and who signed it; then the import."""
    package = get_object_or_404(ReceivedPackage.objects.undecided_by(request.user), pk=pk)
    existing = package.known_to(request.user)
    form = ImportForm(package, request.user, request.POST if request.method == "POST" else None)
    status = HTTPStatus.OK
    if request.method == "POST" and existing is None:
        job = _start(request, package, form)
        if job is not None:
            return redirect(job)
        status = HTTPStatus.CONFLICT if form.is_valid() else HTTPStatus.BAD_REQUEST
    context = {
        "package": package,
        "label": package.label,
        "told": package.description["condition"],
        "state": package.signature_now.value,
        "trusted": package.trusted_as,
        "existing": existing,
        "form": form,
    }
    return render(request, "registry/package_confirm.html", context, status=status)


def _start(request: HttpRequest, package: ReceivedPackage, form: ImportForm) -> PackageImport | None:
    try:
        PackageImport.require_yes(package, form.answered_for, by=request.user)
        if not form.is_valid():
            return None
        with transaction.atomic():
            job = PackageImport.create(package, request.user, **form.options)
            job.enqueue()
    except JobError as error:
        messages.warning(request, f"{error} {error.hint}")
        return None
    return job


@allow("registry.view_packageimport")
@require_GET
def import_detail(request: HtmxHttpRequest, pk: int) -> HttpResponse:
    """How far an import is, or what became of it; to htmx the fragment alone."""
    job = _visible_import(request, pk)
    template = "registry/_import.html" if request.htmx else "registry/import_detail.html"
    return render(request, template, {"job": job, "package": job.package})


@allow("registry.add_packageimport")
@require_POST
def import_cancel(request: HttpRequest, pk: int) -> HttpResponse:
    job = _visible_import(request, pk)
    if not job.request_cancel(request.user):
        messages.info(request, "This import had ended already.")
    return redirect(job)


def _visible_import(request: HttpRequest, pk: int) -> PackageImport:
    imports = PackageImport.objects.visible_to(request.user)
    return get_object_or_404(imports.select_related("package", "condition", "created_by", "version__condition"), pk=pk)
