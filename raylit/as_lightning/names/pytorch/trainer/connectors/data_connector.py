"""Lightning's place for the Trainer's data."""
