"""Relevance rules: rulebooks, the rules of linear operations, and the table of all other operations."""
