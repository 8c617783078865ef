"""The application of a process of which nothing is started: its routes and their document."""

from __future__ import annotations

from dataclasses import MISSING, fields
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from backlot.app import make_app
from backlot.features import read_models
from backlot.http import describe
from infra.http.app import HttpApp
from infra.http.auth import make_authenticator
from infra.objects.folder import FolderStore
from infra.settings import load_settings
from workers.parts import Parts

# Whoever looks at a document only reads it, and to make one takes a third of a second.
described = cache(describe)
SECRET = "signs the tokens of these tests only"


def application(folder: Path, **variables: str) -> HttpApp:
    """That of a process with every role."""
    settings = load_settings(variables)
    parts: dict[str, Any] = {
        field.name: None
        for field in fields(Parts)
        if field.default is MISSING and field.default_factory is MISSING
    }
    parts |= {
        "settings": settings,
        "authenticator": make_authenticator(settings.auth, SECRET),
        "objects": FolderStore(folder, SECRET.encode(), timedelta(1), lambda: datetime.now(UTC)),
        "models": read_models(),
    }
    return make_app(Parts(**parts))
