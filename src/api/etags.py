"""ETags: whether a client has this version already."""

from starlette.requests import Request


def has(request: Request, etag: bytes) -> bool:
    """Whether If-None-Match names the ETag, compared weakly (RFC 9110, 13.1.2)."""
    known = b",".join(v for name, v in request.scope["headers"] if name == b"if-none-match")
    if not known:
        return False
    tags = [tag.strip().removeprefix(b"W/") for tag in known.split(b",")]
    return etag.removeprefix(b"W/") in tags or b"*" in tags
