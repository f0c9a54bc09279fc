"""From a model to the graph of its operations."""
