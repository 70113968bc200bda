"""The figures of results with their types; at run time every file in `figures/` is imported."""

from . import style as style
from .figures.activation_mosaic import activation_mosaic as activation_mosaic
from .figures.adversarial_examples import adversarial_examples as adversarial_examples
from .figures.attention import attention as attention
from .figures.attribution_graph import attribution_graph as attribution_graph
from .figures.beeswarm import beeswarm as beeswarm
from .figures.channels import channels as channels
from .figures.compare_methods import compare_methods as compare_methods
from .figures.contributions import contributions as contributions
from .figures.curves import curves as curves
from .figures.dependence import dependence as dependence
from .figures.faithfulness_curve import faithfulness_curve as faithfulness_curve
from .figures.feature_bars import feature_bars as feature_bars
from .figures.feature_gallery import feature_gallery as feature_gallery
from .figures.feature_visualization import feature_visualization as feature_visualization
from .figures.gradient_flow import gradient_flow as gradient_flow
from .figures.graph_html import graph_html as graph_html
from .figures.group_effects import group_effects as group_effects
from .figures.heatmap import heatmap as heatmap
from .figures.influence import influence as influence
from .figures.latent_traversal import latent_traversal as latent_traversal
from .figures.layer_profile import layer_profile as layer_profile
from .figures.leaderboard import leaderboard as leaderboard
from .figures.matrix import matrix as matrix
from .figures.method_grid import method_grid as method_grid
from .figures.model_map import model_map as model_map
from .figures.network import network as network
from .figures.overlay_grid import overlay_grid as overlay_grid
from .figures.receptive_field import receptive_field as receptive_field
from .figures.recurrent_states import recurrent_states as recurrent_states
from .figures.relevance_flow import relevance_flow as relevance_flow
from .figures.sampling import sampling as sampling
from .figures.sensitivity import sensitivity as sensitivity
from .figures.sources import sources as sources
from .figures.sources_html import sources_html as sources_html
from .figures.thumbnail import thumbnail as thumbnail
from .figures.timeseries import timeseries as timeseries
from .figures.tokens import tokens as tokens
from .figures.tokens_html import tokens_html as tokens_html
from .figures.top_inputs import top_inputs as top_inputs
from .figures.training import training as training
from .figures.waterfall import waterfall as waterfall
from .plot import (
    FIGURES as FIGURES,
    Plot as Plot,
    figure as figure,
    figures_of as figures_of,
    plot as plot,
    plot_method as plot_method,
    through as through,
)

__all__: list[str]
