"""In front of the real one: a program under test does not wait seconds for its import."""

raise ImportError("tests start programs without tensorflow")
