"""An order is answer on every API process, whichever of them accepted it."""

from collections.abc import Awaitable, Callable
from uuid import uuid4

from cli.settings import Settings
from tests.harness import Stack, free_port

MakeStack = Callable[..., Awaitable[Stack]]


async def with_a_second_api(stack: Stack) -> Stack:
    """A second API process on the same ledger."""
    changed = stack.settings.model_copy(update={"api_port": free_port()})
    other = Stack(Settings.model_validate(changed.model_dump()))
    other.start("api")
    await other.ready()
    return other


async def test_an_order_that_is_not_decided_yet_is_pending_on_every_process(
    make_stack: MakeStack,
) -> None:
    stack = await make_stack(api_shared=True)
    other = await with_a_second_api(stack)
    try:
        stack.kill("writer")
        body = {"customer_id": str(uuid4()), "product_id": str(uuid4())}
        for _ in range(20):
            accepted = (await stack.http.post("/orders", json=body)).json()
            assert "order_id" in accepted, (accepted, stack.log_path("api").read_text())
            answer = await other.http.get(f"/orders/{accepted['order_id']}")
            assert answer.status_code == 200, answer.text
            assert answer.json()["status"] == "PENDING"
            assert answer.json()["created_at"] == accepted["created_at"]
    finally:
        await other.stop()


async def test_an_order_that_nobody_accepted_stays_unknown(make_stack: MakeStack) -> None:
    stack = await make_stack(api_shared=True)
    assert (await stack.http.get(f"/orders/{uuid4()}")).status_code == 404
