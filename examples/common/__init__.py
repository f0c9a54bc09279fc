"""Parts of the example programs: options, data, models, progress and results."""
