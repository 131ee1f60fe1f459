"""What the user says of agents and links, as plain values."""
