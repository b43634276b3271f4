"""From weights to a rank."""
