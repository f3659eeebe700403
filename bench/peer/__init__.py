"""The design that the ledger replaces, small and faithful: FastAPI, Celery, Redis, row locks.

An order is a row from the first moment, PENDING; one Celery task an order, acked late and fetched
one at a time, locks the customer's and the product's row and commits the outcome in one
transaction. It runs on the same MariaDB, from a virtual environment of its own.
"""
