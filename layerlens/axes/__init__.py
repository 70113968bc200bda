"""Names of the axes of tensors: batch, unit and places."""

from layerlens.deprecated import keep_old_names

keep_old_names(__name__)
