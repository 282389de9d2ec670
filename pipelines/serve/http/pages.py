"""The pages for browsers: each is one document that needs nothing from elsewhere, as its headers
say.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import Response

_FOLDER = Path(__file__).parent
_SCRIPT_FILE = re.compile(r'<script src="([\w.]+)"></script>')
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def wants_page(accept: str) -> bool:
    """Tell whether a client with this header Accept is a browser: others take anything, or JSON."""
    return "text/html" in accept.lower()


def page(name: str) -> Response:
    """Make the response of a page, `name`.html."""
    content, policy = _load(name)
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "vary": "accept",
    }
    return Response(content, headers=headers, media_type="text/html")


@cache
def _load(name: str) -> tuple[bytes, str]:
    """Return a page with its scripts in it, and the policy that allows these and no others."""
    html = _SCRIPT_FILE.sub(
        lambda found: f"<script>{(_FOLDER / found[1]).read_text(encoding='utf-8')}</script>",
        (_FOLDER / f"{name}.html").read_text(encoding="utf-8"),
    )
    sources = {
        kind: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, text in _INLINE.findall(html)
    }
    policy = (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; "
        "connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.encode(), policy
