from django.urls import path

from . import (
    card_views,
    compare_views,
    evaluation_views,
    export_views,
    label_views,
    lineage_views,
    package_views,
    service_views,
    state_views,
    storage_views,
    threshold_views,
    views,
)

app_name = "registry"

urlpatterns = [
    path("", views.version_list, name="version-list"),
    path("compare/", compare_views.version_compare, name="version-compare"),
    path("storage/", storage_views.storage, name="storage"),
    path("storage/delete/", storage_views.versions_delete, name="versions-delete"),
    path("storage/archive/", storage_views.versions_archive, name="versions-archive"),
    path("<int:pk>/", views.version_detail, name="version-detail"),
    path("<int:pk>/activate/", service_views.version_activate, name="version-activate"),
    path("<int:pk>/rollback/", service_views.version_rollback, name="version-rollback"),
    path("<int:pk>/verify/", service_views.version_verify, name="version-verify"),
    path("<int:pk>/restore/", service_views.version_restore, name="version-restore"),
    path("<int:pk>/approve/", state_views.version_approve, name="version-approve"),
    path("<int:pk>/archive/", state_views.version_archive, name="version-archive"),
    path("<int:pk>/reopen/", state_views.version_reopen, name="version-reopen"),
    path("<int:pk>/tag/", label_views.version_tag, name="version-tag"),
    path("<int:pk>/untag/", label_views.version_untag, name="version-untag"),
    path("<int:pk>/note/", label_views.version_note, name="version-note"),
    path("scheduled/<int:pk>/cancel/", service_views.scheduled_cancel, name="scheduled-cancel"),
    path("<int:pk>/operating-point/", threshold_views.threshold_edit, name="threshold-edit"),
    path("<int:pk>/export/", export_views.version_export, name="version-export"),
    path("conditions/<slug:slug>/export/", export_views.condition_export, name="condition-export"),
    path("packages/", package_views.package_create, name="package-create"),
    path("packages/<uuid:pk>/", package_views.package_confirm, name="package-confirm"),
    path("imports/<int:pk>/", package_views.import_detail, name="import-detail"),
    path("imports/<int:pk>/cancel/", package_views.import_cancel, name="import-cancel"),
    path("<int:pk>/card/", card_views.version_card, name="version-card"),
    path("<int:pk>/lineage/", lineage_views.version_lineage, name="version-lineage"),
    path("evaluations/<int:pk>/", evaluation_views.evaluation_detail, name="evaluation-detail"),
    path("evaluations/<int:pk>/print/", evaluation_views.evaluation_print, name="evaluation-print"),
]
