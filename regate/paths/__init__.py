"""Ways to run a gated step: attention on padded rows, on one packed row, or under a block mask; the sparse head."""
