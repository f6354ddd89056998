"""Events over Kafka: topics, the transactional outbox, consumers, dead letters."""
