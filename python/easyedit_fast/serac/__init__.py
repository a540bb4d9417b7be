"""SERAC: an edit memory, a scope classifier and a counterfactual model."""
