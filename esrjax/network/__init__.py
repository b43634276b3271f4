"""What networks are made of, and how they change form."""
