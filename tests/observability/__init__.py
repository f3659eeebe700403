"""What the processes show of themselves: metrics, logs, traces."""
