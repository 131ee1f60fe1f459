"""What `decouple` returns."""
