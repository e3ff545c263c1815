"""One evaluator: inputs, features, metrics with intervals."""
