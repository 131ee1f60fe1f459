"""What a captured graph is: its nodes, its guards, what is known of its values."""
