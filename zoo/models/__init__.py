"""Models by name: what there is, and how one is created, loaded and saved."""
