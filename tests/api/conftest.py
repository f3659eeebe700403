"""The API as its clients reach it."""

import httpx
import pytest

from tests.harness import Stack


@pytest.fixture
def http(stack: Stack) -> httpx.AsyncClient:
    """A client of a served API with writer and projector behind it; paths begin at /api/v1."""
    return stack.http
