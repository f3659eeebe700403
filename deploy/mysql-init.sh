#!/bin/bash
# Run by the image's entrypoint, once, when the data directory is new: the account of `ledger migrate`.
MYSQL_PWD="$MYSQL_ROOT_PASSWORD" mysql --protocol=socket --user=root </run/ledger/bootstrap.sql
