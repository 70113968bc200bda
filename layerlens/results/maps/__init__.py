"""Results that hold a map over inputs or layers."""
