"""The log in files: exported to read elsewhere, verified without a database, imported again."""

from __future__ import annotations

from infra.archive.export import export_log
from infra.archive.importing import ImportRefused, import_log
from infra.archive.plan import ExportFormat, ExportRefused, Plan, Wish
from infra.archive.reading import ExportUnusable, read_header
from infra.archive.verify import verify_export

__all__ = [
    "ExportFormat",
    "ExportRefused",
    "ExportUnusable",
    "ImportRefused",
    "Plan",
    "Wish",
    "export_log",
    "import_log",
    "read_header",
    "verify_export",
]
