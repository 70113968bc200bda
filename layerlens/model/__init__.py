"""The model of the user: borrowed and returned as it was, its layers, where its weights are."""
