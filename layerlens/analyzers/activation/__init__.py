"""Activations: what a layer returned, unit by unit, and what its units respond to."""

from layerlens.deprecated import keep_old_names

from .activation_maps import activation_maps, layer_maps
from .attention.rollout import attention_rollout
from .attention.weights import attention
from .feature_visualization import feature_visualization
from .latent_traversal import latent_traversal
from .receptive_field import receptive_field
from .recurrent import recurrent_states

__all__ = [
    "activation_maps",
    "attention_rollout",
    "attention",
    "feature_visualization",
    "latent_traversal",
    "layer_maps",
    "receptive_field",
    "recurrent_states",
]

keep_old_names(__name__)
