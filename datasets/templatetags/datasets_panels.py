"""The dashboard's view of the datasets."""

from typing import Any

from django import template
from django.db.models import Exists, OuterRef

from datasets.models import Dataset, Preparation

register = template.Library()


def _datasets(context: template.Context) -> list[Dataset]:
    finished = Preparation.objects.filter(dataset=OuterRef("pk"), state=Preparation.State.SUCCEEDED)
    return list(Dataset.objects.visible_to(context["request"].user).annotate(prepared=Exists(finished)))


@register.inclusion_tag("datasets/_panel.html", takes_context=True)
def datasets_panel(context: template.Context) -> dict[str, Any]:
    datasets = _datasets(context)
    return {
        "count": len(datasets),
        "images": sum(dataset.images_count for dataset in datasets),
        "prepared": sum(dataset.prepared for dataset in datasets),
        "problems": [dataset for dataset in datasets if dataset.problems_count],
    }


@register.simple_tag(takes_context=True)
def datasets_progress(context: template.Context) -> dict[str, bool]:
    """Whether anything was found and anything was prepared."""
    datasets = _datasets(context)
    return {"scanned": bool(datasets), "prepared": any(dataset.prepared for dataset in datasets)}


LEFT_OUT = {
    "unreadable": "unreadable",
    "excluded": "left out by hand",
    "label-conflict": "with two labels",
    "dropped-class": "of classes that are left out",
}


@register.filter
def left_out_reason(code: str) -> str:
    return LEFT_OUT.get(code, code)
