"""One run over a data set: its beginning and end, and its work loop."""

from layerlens.deprecated import keep_old_names

keep_old_names(__name__)
