"""The log in files: exported to read elsewhere, verified without a database, imported again."""

from __future__ import annotations

from infra.archive.export import export_log
from infra.archive.importing import ImportRefused, import_log
from infra.archive.plan import ExportFormat, ExportRefused, ExportRequest, Plan
from infra.archive.reading import ExportUnusable, read_header
from infra.archive.verify import verify_export

__all__ = [
    "ExportFormat",
    "ExportRefused",
    "ExportRequest",
    "ExportUnusable",
    "ImportRefused",
    "Plan",
    "export_log",
    "import_log",
    "read_header",
    "verify_export",
]
