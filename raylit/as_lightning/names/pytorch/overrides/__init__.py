"""Lightning's place for its versions of torch's classes."""
