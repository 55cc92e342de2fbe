"""Page: what came of a dataset."""

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from datasets.models import Dataset
from xrayplatform.access import allow

from .lineage import lineage_of

VERSIONS_ON_A_PAGE = 25


@allow("datasets.view_dataset", "registry.view_modelversion")
@require_GET
def dataset_lineage(request: HttpRequest, pk: int) -> HttpResponse:
    dataset = get_object_or_404(Dataset.objects.visible_to(request.user), pk=pk)
    lineage = lineage_of(dataset, request.user)
    page = Paginator(lineage.members, VERSIONS_ON_A_PAGE).get_page(request.GET.get("page"))
    context = {"dataset": dataset, "lineage": lineage, "page": page, "tab": "lineage"}
    return render(request, "training/dataset_lineage.html", context)
