"""Analyses of every sample of a data set, one file each."""
