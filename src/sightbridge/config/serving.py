"""Settings of the server: bounds on what a client may ask for, and what it is kept from."""

from __future__ import annotations

from pydantic import Field

from sightbridge.config.base import Settings


class ServingSettings(Settings):
    """Bounds of ``sightbridge serve``. Whatever is above one is refused with a message that names the bound."""

    max_body_bytes: int = Field(default=32 * 2**20, ge=1, description="of one request's body")
    max_image_bytes: int = Field(default=16 * 2**20, ge=1, description="of one picture, as a file")
    max_pixels: int = Field(default=25_000_000, ge=1, description="width x height of one picture")
    max_images: int = Field(default=16, ge=1, description="pictures of one conversation")
    max_scored_images: int = Field(default=64, ge=1, description="pictures of one request for scores or features")
    max_regions: int = Field(default=64, ge=0, description="marks on all pictures of one request")
    max_characters: int = Field(default=100_000, ge=1, description="all text of one request, in its templates")
    max_texts: int = Field(default=256, ge=1, description="texts of one request for scores or features")
    max_pairs: int = Field(default=4096, ge=1, description="pictures x texts of one request for scores")
    max_answers: int = Field(default=8, ge=1, description="'n' of one request")
    max_beams: int = Field(default=8, ge=1, description="'num_beams' of one request")
    max_tokens: int = Field(default=1024, ge=1, description="the longest answer")
    default_tokens: int = Field(default=512, ge=1, description="an answer's length if the request names none")
    max_in_flight: int = Field(default=256, ge=1, description="requests handled at the same time; others get 429")
    max_waiting_scores: int = Field(default=16, ge=1, description="requests for scores or features that wait")
    request_seconds: float = Field(default=300, gt=0, description="after so long a request ends with 504")
    body_seconds: float = Field(default=30, gt=0, description="within so long a body must have arrived")
    drain_seconds: float = Field(default=60, gt=0, description="what is being answered may take so long at the end")
    max_files_bytes: int = Field(default=256 * 2**20, ge=0, description="uploaded pictures kept; the oldest go first")
    remote_hosts: list[str] = Field(default_factory=list, description="hosts that pictures may be fetched from")
    remote_seconds: float = Field(default=10, gt=0, description="for fetching one picture")
    allowed_hosts: list[str] = Field(
        default_factory=list,
        description="what a Host header may say; empty = anything. A page in a browser cannot lie about it",
    )
