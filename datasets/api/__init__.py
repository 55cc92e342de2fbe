"""API of the datasets app, a module for each object."""

from .datasets import DatasetViewSet, ScanViewSet
from .images import FindingViewSet, ImageViewSet
from .preparations import PreparationViewSet
from .uploads import UploadViewSet

__all__ = ["DatasetViewSet", "FindingViewSet", "ImageViewSet", "PreparationViewSet", "ScanViewSet", "UploadViewSet"]
