from django.urls import path

from . import card_views, compare_views, evaluation_views, threshold_views, views

app_name = "registry"

urlpatterns = [
    path("", views.version_list, name="version-list"),
    path("compare/", compare_views.version_compare, name="version-compare"),
    path("<int:pk>/", views.version_detail, name="version-detail"),
    path("<int:pk>/activate/", views.version_activate, name="version-activate"),
    path("<int:pk>/operating-point/", threshold_views.threshold_edit, name="threshold-edit"),
    path("<int:pk>/card/", card_views.version_card, name="version-card"),
    path("evaluations/<int:pk>/", evaluation_views.evaluation_detail, name="evaluation-detail"),
    path("evaluations/<int:pk>/print/", evaluation_views.evaluation_print, name="evaluation-print"),
]
