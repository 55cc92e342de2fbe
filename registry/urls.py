from django.urls import path

from . import (
    card_views,
    compare_views,
    evaluation_views,
    export_views,
    package_views,
    service_views,
    threshold_views,
    views,
)

app_name = "registry"

urlpatterns = [
    path("", views.version_list, name="version-list"),
    path("compare/", compare_views.version_compare, name="version-compare"),
    path("<int:pk>/", views.version_detail, name="version-detail"),
    path("<int:pk>/activate/", service_views.version_activate, name="version-activate"),
    path("<int:pk>/rollback/", service_views.version_rollback, name="version-rollback"),
    path("<int:pk>/verify/", service_views.version_verify, name="version-verify"),
    path("<int:pk>/restore/", service_views.version_restore, name="version-restore"),
    path("scheduled/<int:pk>/cancel/", service_views.scheduled_cancel, name="scheduled-cancel"),
    path("<int:pk>/operating-point/", threshold_views.threshold_edit, name="threshold-edit"),
    path("<int:pk>/export/", export_views.version_export, name="version-export"),
    path("conditions/<slug:slug>/export/", export_views.condition_export, name="condition-export"),
    path("packages/", package_views.package_create, name="package-create"),
    path("packages/<uuid:pk>/", package_views.package_confirm, name="package-confirm"),
    path("imports/<int:pk>/", package_views.import_detail, name="import-detail"),
    path("imports/<int:pk>/cancel/", package_views.import_cancel, name="import-cancel"),
    path("<int:pk>/card/", card_views.version_card, name="version-card"),
    path("evaluations/<int:pk>/", evaluation_views.evaluation_detail, name="evaluation-detail"),
    path("evaluations/<int:pk>/print/", evaluation_views.evaluation_print, name="evaluation-print"),
]
