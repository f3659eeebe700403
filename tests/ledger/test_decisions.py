"""What of a batch is new, without any server."""

from uuid import UUID, uuid4

from msgspec import structs

from ledger.core.decider import Fold
from ledger.core.events import OrderPlaced
from ledger.core.pricing import CURRENT_RULES
from ledger.eventlog.decisions import compose, drop_duplicates
from ledger.eventlog.encryption import CustomerKeys
from ledger.eventlog.records import EMPTY, Submitted


def placed(event_id: UUID | None = None, atomic_id: UUID | None = None) -> Submitted:
    payload = OrderPlaced(uuid4(), uuid4())
    return Submitted(event_id or uuid4(), uuid4(), 1, payload, atomic_id=atomic_id)


def test_the_first_of_two_with_one_id_counts() -> None:
    first, other = placed(), placed()
    again = placed(first.event_id)
    assert drop_duplicates([first, other, again], set()) == [first, other]
    assert drop_duplicates([first, other], {first.event_id.bytes}) == [other]


def test_an_atomic_batch_delivered_twice_stays_whole() -> None:
    atomic_id = uuid4()
    batch = [placed(atomic_id=atomic_id) for _ in range(3)]
    assert drop_duplicates(batch + batch, set()) == batch
    assert drop_duplicates(batch, {event.event_id.bytes for event in batch}) == []


def test_an_atomic_batch_is_never_torn_by_another_body_of_its_key() -> None:
    one, two = uuid4(), uuid4()
    batch = [placed(atomic_id=one) for _ in range(2)]
    longer = [placed(event.event_id, two) for event in batch] + [placed(atomic_id=two)]
    alone = placed()
    assert drop_duplicates([*batch, *longer, alone], set()) == [*batch, alone]
    assert drop_duplicates([*longer, alone], {longer[0].event_id.bytes}) == [alone]
    single = placed(longer[2].event_id)
    assert drop_duplicates([single, *longer], set()) == [single]


def test_a_decided_event_names_the_version_of_the_rules_from_the_second_on() -> None:
    for version, meta in ((1, b"{}"), (7, b'{"rules":7}')):
        fold = Fold(rules=structs.replace(CURRENT_RULES, version=version))
        events = [placed(), placed(atomic_id=uuid4())]
        composed = compose(events, fold, EMPTY, {}, 1, CustomerKeys({}))
        submitted, decided, submitted_too, decided_too = composed.records
        assert (decided.meta, decided_too.meta) == (meta, meta)
        assert submitted.meta == submitted_too.meta == b"{}"
