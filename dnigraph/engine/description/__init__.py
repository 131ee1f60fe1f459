"""What parts and links are, as plain values."""
