"""What every axis of every tensor is: samples, units and places, followed through the model."""
