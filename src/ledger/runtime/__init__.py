"""What every process needs: database connections, reconnects, metrics, traces, logs."""
