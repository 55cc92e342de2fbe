from django.urls import path

from . import views

app_name = "datasets"

urlpatterns = [
    path("", views.dataset_list, name="dataset-list"),
    path("scan/", views.scan_start, name="scan-start"),
    path("scans/<int:pk>/status/", views.scan_status, name="scan-status"),
    path("scans/<int:pk>/cancel/", views.scan_cancel, name="scan-cancel"),
    path("<int:pk>/", views.dataset_detail, name="dataset-detail"),
    path("<int:pk>/prepare/", views.preparation_start, name="preparation-start"),
    path("preparations/<int:pk>/", views.preparation_detail, name="preparation-detail"),
    path("preparations/<int:pk>/cancel/", views.preparation_cancel, name="preparation-cancel"),
]
