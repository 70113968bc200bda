"""Stores: results of every sample in shards, with a manifest."""

from layerlens.deprecated import keep_old_names

keep_old_names(__name__)
