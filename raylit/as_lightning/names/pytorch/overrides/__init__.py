"""Lightning's place for what it does with classes of torch."""
