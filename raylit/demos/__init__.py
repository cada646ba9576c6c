"""Lightning's place for small examples."""
