"""Who learns when: parts with their optimisers, the links between them, and each firing until it has learned."""
