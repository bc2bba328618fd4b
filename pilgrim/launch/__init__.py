"""Starting a run's processes, and starting them again when they fall."""
