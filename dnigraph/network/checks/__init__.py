"""What is wrong with a network, before anything has learned."""
