"""What the bench carries into an unmodified machine."""
