"""The example apps and notebooks."""
