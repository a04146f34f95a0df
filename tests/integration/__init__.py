"""Real brokers and real workers."""
