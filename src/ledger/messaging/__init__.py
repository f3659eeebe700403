"""RabbitMQ: the topology, the publisher, the consumer, notifications and the parking queue."""
