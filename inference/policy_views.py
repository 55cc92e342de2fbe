"""Page: what the checks before the model do in a condition, and when people are told about its use."""

from http import HTTPStatus

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods

from xrayplatform.access import allow
from xrayplatform.conditions import Condition

from .models import ServingPolicy
from .policies import RESPONSES, PolicyConflict, change
from .policy_forms import PolicyForm


@allow("inference.view_servingpolicy")
@require_http_methods(["GET", "POST"])
def policy_edit(request: HttpRequest, slug: str) -> HttpResponse:
    """Model managers change it; everybody else reads it."""
    condition = get_object_or_404(Condition.objects.visible_to(request.user), slug=slug)
    may_change = request.user.has_perm("inference.change_servingpolicy")
    policy = ServingPolicy.objects.of(condition)
    form = PolicyForm(policy, request.POST or None)
    status = HTTPStatus.OK
    if request.method == "POST":
        if not may_change:
            raise PermissionDenied
        status = HTTPStatus.BAD_REQUEST
        if form.is_valid():
            try:
                change(condition, form.changes, by=request.user, seen=form.cleaned_data["seen"])
            except PolicyConflict as error:
                # The form of what is so now: to save what was typed would undo the other's work.
                form, status = PolicyForm(ServingPolicy.objects.of(condition)), HTTPStatus.CONFLICT
                messages.error(request, str(error))
            else:
                messages.success(request, "The policy was saved. It counts from the next radiograph on.")
                return redirect("inference:policy-edit", slug)
    context = {
        "condition": condition,
        "policy": policy,
        "form": form,
        "may_change": may_change,
        "responses": list(RESPONSES.values()),
    }
    return render(request, "inference/policy_edit.html", context, status=status)
