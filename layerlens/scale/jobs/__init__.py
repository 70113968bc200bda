"""What can be done with every sample of a data set, a file each."""
