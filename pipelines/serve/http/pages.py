"""The pages for browsers: each needs nothing from elsewhere, and its headers allow nothing more."""

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

    def inlined(script: re.Match[str]) -> str:
        code = (_FOLDER / script[1]).read_text(encoding="utf-8")
        return f"<script>{code}</script>"

    page_file = _FOLDER / f"{name}.html"
    html = _SCRIPT_FILE.sub(inlined, page_file.read_text(encoding="utf-8"))
    sources = {kind: _source(text) for kind, text in _INLINE.findall(html)}
    policy = (
        f"default-src 'none'; script-src {sources['script']}; style-src {sources['style']}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.encode(), policy


def _source(text: str) -> str:
    """Return how a policy names a script or style by its content."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
