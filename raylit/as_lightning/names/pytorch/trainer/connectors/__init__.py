"""Lightning's place for the parts of its Trainer."""
