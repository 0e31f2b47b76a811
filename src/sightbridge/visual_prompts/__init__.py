"""Visual prompts: marks on pictures that a question can point at. Needs Pillow only.

The shapes, their distributions and their wording are those of ViP-LLaVA (https://arxiv.org/abs/2312.00784,
https://github.com/WisconsinAIVision/ViP-LLaVA), which trained models to follow them.
"""

from sightbridge.visual_prompts.contact_sheet import draw_contact_sheet
from sightbridge.visual_prompts.drawing import draw
from sightbridge.visual_prompts.looks import random_marks
from sightbridge.visual_prompts.mark import COLOURS, PREPOSITIONS, SHAPES, Colour, Mark, Shape, parse_colour
from sightbridge.visual_prompts.masks import decode_rle, region_from_mask, region_from_rle
from sightbridge.visual_prompts.region import Region, region_from_polygons, region_from_strokes

__all__ = [
    "COLOURS",
    "PREPOSITIONS",
    "SHAPES",
    "Colour",
    "Mark",
    "Region",
    "Shape",
    "decode_rle",
    "draw",
    "draw_contact_sheet",
    "parse_colour",
    "random_marks",
    "region_from_mask",
    "region_from_polygons",
    "region_from_rle",
    "region_from_strokes",
]
