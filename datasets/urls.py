from django.urls import path

from .views import datasets, images, preparations, quality, uploads

app_name = "datasets"

urlpatterns = [
    path("", datasets.dataset_list, name="dataset-list"),
    path("scan/", datasets.scan_start, name="scan-start"),
    path("scans/<int:pk>/status/", datasets.scan_status, name="scan-status"),
    path("scans/<int:pk>/cancel/", datasets.scan_cancel, name="scan-cancel"),
    path("storage/", preparations.storage_detail, name="storage-detail"),
    path("storage/prune/", preparations.storage_prune, name="storage-prune"),
    path("<int:pk>/", datasets.dataset_detail, name="dataset-detail"),
    path("<int:pk>/problems/", datasets.problem_list, name="problem-list"),
    path("<int:pk>/choices/", datasets.dataset_choices, name="dataset-choices"),
    path("<int:pk>/choices/pattern/", datasets.pattern_preview, name="pattern-preview"),
    path("<int:pk>/missing/accept/", datasets.missing_accept, name="missing-accept"),
    path("<int:pk>/quality/", quality.quality_report, name="quality-report"),
    path("<int:pk>/quality/decide/", quality.finding_decide, name="finding-decide"),
    path("<int:pk>/images/", images.image_list, name="image-list"),
    path("images/<int:pk>/", images.image_detail, name="image-detail"),
    path("images/<int:pk>/thumbnail.png", images.image_thumbnail, name="image-thumbnail"),
    path("images/<int:pk>/decide/", images.image_decide, name="image-decide"),
    path("images/<int:pk>/flag/", images.image_flag, name="image-flag"),
    path("upload/", uploads.upload_new, name="upload-new"),
    path("<int:pk>/upload/", uploads.upload_create, name="upload-create"),
    path("uploads/<int:pk>/", uploads.upload_detail, name="upload-detail"),
    path("uploads/<int:pk>/cancel/", uploads.upload_cancel, name="upload-cancel"),
    path("<int:pk>/prepare/", preparations.preparation_start, name="preparation-start"),
    path("<int:pk>/compare/", preparations.version_compare, name="version-compare"),
    path("preparations/<int:pk>/", preparations.preparation_detail, name="preparation-detail"),
    path("preparations/<int:pk>/cancel/", preparations.preparation_cancel, name="preparation-cancel"),
    path("preparations/<int:pk>/remove-pixels/", preparations.pixels_remove, name="pixels-remove"),
]
