"""The environment of the programs that this one starts: no setting of ours, and so no secret."""

from __future__ import annotations

import os

# Where things are found, how text is written, how many cores and which graphics cards there are.
KEPT = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LC_ALL", "LC_CTYPE"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "XDG_CACHE_HOME"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
        *("OMP_NUM_THREADS", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"),
    }
)


def bare_environment(**more: str) -> dict[str, str]:
    """Return the variables of this process that hold no setting of anybody's, and `more`."""
    return {name: text for name, text in os.environ.items() if name in KEPT} | more
