"""The registry in Django's admin: what never changes is read-only, and decisions take the same way as on the pages."""

from . import decisions, exchange, records, service, versions, webhooks

__all__ = ["decisions", "exchange", "records", "service", "versions", "webhooks"]
