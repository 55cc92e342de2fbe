"""Pages of the platform itself: login, dashboard, system status, audit log, API tokens, guide, errors."""

from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import LoginView, LogoutView
from django.core.paginator import Paginator
from django.db import connection, transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from knox.models import AuthToken

from . import audit, audit_export, http, system
from .access import allow
from .audit_filters import AuditFilter, export_response
from .audit_verification import last_verification
from .notifications import Notification, mark_read


@method_decorator(login_not_required, name="dispatch")
class Login(LoginView):
    template_name = "xrayplatform/login.html"
    redirect_authenticated_user = True

    def form_valid(self, form: Any) -> HttpResponse:
        with transaction.atomic():
            response = super().form_valid(form)
            audit.record("user.login", form.get_user(), actor=form.get_user())
        return response

    def form_invalid(self, form: Any) -> HttpResponse:
        attempted = str(form.data.get("username", ""))[:150]
        audit.record("user.login", actor_name=attempted, outcome=audit.AuditEntry.Outcome.REFUSED)
        return super().form_invalid(form)


class Logout(LogoutView):
    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        with transaction.atomic():
            if request.user.is_authenticated:
                audit.record("user.logout", request.user, actor=request.user)
            return super().post(request, *args, **kwargs)


@allow()
@require_GET
def dashboard(request: HttpRequest) -> HttpResponse:
    """The panels come from template tags of the apps, so that this app need not know them."""
    return render(request, "xrayplatform/dashboard.html")


@allow()
@require_GET
def guide(request: HttpRequest) -> HttpResponse:
    return render(request, "xrayplatform/guide.html")


@allow("xrayplatform.view_system")
@require_GET
def system_status(request: http.HtmxHttpRequest) -> HttpResponse:
    context = {
        "resources": system.resources(),
        "queues": system.queue_status(),
        "verification": last_verification(),
    }
    template = "xrayplatform/_system_status.html" if request.htmx else "xrayplatform/system_status.html"
    return render(request, template, context)


@allow("xrayplatform.view_auditentry")
@require_GET
def auditentry_list(request: HttpRequest) -> HttpResponse:
    found = AuditFilter(_without_blanks(request), audit.AuditEntry.objects.select_related("actor"))
    # A date that is none finds nothing, and the page says why.
    entries = found.qs if found.is_valid() else found.queryset.none()
    context = {
        "page": Paginator(entries, 50).get_page(request.GET.get("page")),
        "filters": request.GET,
        "errors": found.errors,
        "outcomes": audit.AuditEntry.Outcome.choices,
        "channels": ["web", "api", "command", "system"],
        "query": urlencode(found.data),
        "public_key": audit.keyring().public_key(),
    }
    return render(request, "xrayplatform/auditentry_list.html", context)


@allow("xrayplatform.view_auditentry")
@require_GET
def auditentry_export(request: HttpRequest) -> HttpResponseBase:
    """A signed file of the entries that the page would show."""
    found = AuditFilter(_without_blanks(request), audit.AuditEntry.objects.all())
    form = request.GET.get("as", "csv")
    if not found.is_valid() or form not in audit_export.FORMATS:
        raise Http404
    return export_response(found.qs, form, found.data, by=request.user)


def _without_blanks(request: HttpRequest) -> dict[str, str]:
    asked = {name: request.GET.get(name, "").strip() for name in AuditFilter.base_filters}
    return {name: text for name, text in asked.items() if text}


@allow()
@require_http_methods(["GET", "POST"])
def token_list(request: HttpRequest) -> HttpResponse:
    """The user's own API tokens. A new one is shown once, in the answer to its creation."""
    created = None
    if request.method == "POST":
        with transaction.atomic():
            token, created = AuthToken.objects.create(request.user)
            audit.record("token.create", request.user, actor=request.user, after={"token": token.token_key})
    tokens = AuthToken.objects.filter(user=request.user).order_by("-created")
    return render(request, "xrayplatform/token_list.html", {"tokens": tokens, "created": created})


@allow()
@require_POST
def token_revoke(request: HttpRequest, token_key: str) -> HttpResponse:
    token = get_object_or_404(AuthToken, user=request.user, token_key=token_key)
    with transaction.atomic():
        audit.record("token.revoke", request.user, actor=request.user, after={"token": token_key})
        token.delete()
    messages.success(request, "The token was revoked. Programs that used it are refused from now on.")
    return redirect("xrayplatform:token-list")


@allow()
@require_GET
def notification_list(request: HttpRequest) -> HttpResponse:
    """The user's own messages, newest first."""
    own = Notification.objects.of(request.user)
    page = Paginator(own, 25).get_page(request.GET.get("page"))
    return render(request, "xrayplatform/notification_list.html", {"page": page, "unread": own.unread().exists()})


@allow()
@require_POST
def notification_read(request: HttpRequest) -> HttpResponse:
    """Mark the messages named by `id`, or without one all of the user's own, as read."""
    numbers = [http.row_number(text) for text in request.POST.getlist("id")]
    if None in numbers:
        raise Http404
    mark_read(request.user, numbers or None)
    return redirect("xrayplatform:notification-list")


@login_not_required
@never_cache
@require_GET
def health(request: HttpRequest) -> JsonResponse:
    """For load balancers: 200 when the database answers."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return JsonResponse({"status": "ok"})


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    http.record_refusal(request)
    usual = "Your role does not allow this. Ask an administrator if you need it for your work."
    detail = str(exception) or usual
    return render(request, "error.html", {"title": "Not allowed", "detail": detail}, status=403)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    detail = "The page was open too long, or the request came from another site. Reload the page and try again."
    return render(request, "error.html", {"title": "The form has expired", "detail": detail}, status=403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    detail = "There is no such page or object, or it belongs to another team."
    if request.path.startswith("/api/"):
        return http.problem_response(404, detail)
    return render(request, "error.html", {"title": "Not found", "detail": detail}, status=404)


def server_error(request: HttpRequest) -> HttpResponse:
    detail = "The platform made a mistake. Tell an administrator when it happened and what you were doing."
    if request.path.startswith("/api/"):
        return http.problem_response(500, detail)
    return render(request, "error.html", {"title": "Something went wrong", "detail": detail}, status=500)
