from django.urls import path

from . import views

app_name = "registry"

urlpatterns = [
    path("", views.version_list, name="version-list"),
    path("<int:pk>/", views.version_detail, name="version-detail"),
    path("<int:pk>/activate/", views.version_activate, name="version-activate"),
]
