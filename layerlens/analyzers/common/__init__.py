"""What several families of analyzers share."""
