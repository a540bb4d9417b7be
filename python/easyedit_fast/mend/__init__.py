"""MEND: a trained editor network turns the gradient of an edit into a low-rank update."""
