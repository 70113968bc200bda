"""The backward sweep of relevance: plan, conditions and books."""
