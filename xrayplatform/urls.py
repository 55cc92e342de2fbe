"""Every address of the platform."""

from django.contrib import admin
from django.contrib.auth.decorators import login_not_required
from django.urls import include, path
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from inference.stow_view import StowView

from . import views
from .api import router

platform_patterns = (
    [
        path("login/", views.Login.as_view(), name="login"),
        path("logout/", views.Logout.as_view(), name="logout"),
        path("", views.dashboard, name="dashboard"),
        path("system/", views.system_status, name="system-status"),
        path("audit/", views.auditentry_list, name="auditentry-list"),
        path("audit/export/", views.auditentry_export, name="auditentry-export"),
        path("tokens/", views.token_list, name="token-list"),
        path("tokens/<str:token_key>/revoke/", views.token_revoke, name="token-revoke"),
        path("notifications/", views.notification_list, name="notification-list"),
        path("notifications/read/", views.notification_read, name="notification-read"),
        path("guide/", views.guide, name="guide"),
        path("health/", views.health, name="health"),
    ],
    "xrayplatform",
)

to_login = RedirectView.as_view(pattern_name="xrayplatform:login", query_string=True)

urlpatterns = [
    path("", include(platform_patterns)),
    path("datasets/", include("datasets.urls")),
    path("training/", include("training.urls")),
    path("models/", include("registry.urls")),
    path("analysis/", include("inference.urls")),
    # Django's own login page would bypass the audit log and the lock on deactivated roles.
    path("admin/login/", login_not_required(to_login)),
    path("admin/", admin.site.urls),
    path("api/v1/", include((router.urls, "api"))),
    # Where DICOMweb clients expect it: without a slash at the end.
    path("dicomweb/studies", StowView.as_view(), name="stow-studies"),
    path("dicomweb/studies/<str:study_uid>", StowView.as_view(), name="stow-study"),
    path("api/schema/", SpectacularAPIView.as_view(), name="api-schema"),
    path("api/docs/", SpectacularSwaggerSplitView.as_view(url_name="api-schema"), name="api-docs"),
]

handler403 = "xrayplatform.views.permission_denied"
handler404 = "xrayplatform.views.not_found"
handler500 = "xrayplatform.views.server_error"
