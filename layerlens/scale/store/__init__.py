"""Stores: results of every sample in shards, with a manifest."""
