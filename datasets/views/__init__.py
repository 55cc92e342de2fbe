"""Pages of the datasets app, a module for each object."""
