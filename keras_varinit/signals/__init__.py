"""What travels along a graph: signals, gradients, roles, and the registry of rules."""
