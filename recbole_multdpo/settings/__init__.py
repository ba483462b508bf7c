"""What a user may say: settings, where they come from, and what is refused."""
