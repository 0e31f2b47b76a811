"""Visual prompts: marks on pictures that a question can point at. Needs Pillow only.

The shapes, their distributions and their wording are those of ViP-LLaVA (https://arxiv.org/abs/2312.00784,
https://github.com/WisconsinAIVision/ViP-LLaVA), which trained models to follow them.
"""

from sightbridge.visual_prompts.drawing import draw
from sightbridge.visual_prompts.mark import COLOURS, PREPOSITIONS, Mark, Shape
from sightbridge.visual_prompts.region import Region

__all__ = ["COLOURS", "PREPOSITIONS", "Mark", "Region", "Shape", "draw"]
