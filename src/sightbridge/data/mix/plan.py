"""The plan of a mixture: every row of every raw file is read and checked, counted, and given its language.

Only a few bytes per sample are kept; the samples are read again when they are written.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from random import Random

from sightbridge.data.mix.instructions import Instructions, find_instructions
from sightbridge.data.mix.kinds import Kind, Pool, find_kind, is_too_long
from sightbridge.data.mix.sample import Sample
from sightbridge.data.mix.settings import MixSettings, PartSettings
from sightbridge.data.mix.shares import assign, resolve_languages, share_out
from sightbridge.data.mix.sources import FORMATS, Source
from sightbridge.data.mix.translate import Translator, load_translator
from sightbridge.errors import DataError, SettingsError
from sightbridge.text.languages import TASK_NAMES, find_language

POOL = 4096
"""Captions per language kept to choose wrong ones from; of a larger part they are a random sample."""

Progress = Callable[[str, int, int | None], None]
"""Told what is being done, how far it is, and how far it has to go if that is known."""


@dataclass
class PartPlan:
    """One part: what it is made of, and what its raw file turned out to hold.

    ``shares`` is ``None`` where every sample's language is its own. ``chosen`` marks the raw samples that become rows;
    ``places`` holds the language of each of these, as its place in ``rows``, the rows per language.
    """

    name: str
    part: PartSettings
    kind: Kind
    source: Source
    instructions: Instructions
    shares: dict[str, float] | None
    chosen: bytearray = field(default_factory=bytearray)
    rows: dict[str, int] = field(default_factory=dict)
    places: array[int] | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    pools: dict[str, Pool] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of samples that become rows."""
        return sum(self.chosen)

    @property
    def lost(self) -> list[str]:
        """Languages that were asked for and get no row, because the part is too small for their shares."""
        return [code for code in self.shares or () if not self.rows.get(code)]

    def samples(self) -> Iterator[Sample]:
        """Read the raw file."""
        return FORMATS[self.part.format or self.kind.formats[0]](self.source)

    def chosen_samples(self) -> Iterator[tuple[int, Sample]]:
        """Read the raw file again; the chosen samples, numbered from 0."""
        end = self.chosen.rfind(1) + 1  # what is behind the last one need not be read again
        chosen = (sample for is_chosen, sample in zip(self.chosen[:end], self.samples(), strict=False) if is_chosen)
        return enumerate(chosen)


@dataclass
class MixPlan:
    """A checked mixture."""

    settings: MixSettings
    parts: list[PartPlan]
    translator: Translator | None
    source_language: str
    names: dict[str, str]

    @property
    def total(self) -> int:
        """Number of rows, less those that a translator may yet drop."""
        return sum(part.total for part in self.parts)


def plan_mix(settings: MixSettings, on_progress: Progress = lambda what, done, total: None) -> MixPlan:
    """Check everything about a mixture that can be checked without translating.

    Settings come first, then all raw files, row by row. Raises ``SettingsError`` naming the part, or ``DataError``
    naming file and row.
    """
    root = Path(settings.root).expanduser()
    source = find_language(settings.source_language).code
    parts = [_prepare_part(name, part, settings, root) for name, part in settings.parts.items()]
    translator = _prepare_translator(settings, parts, root, source)
    plan = MixPlan(settings, parts, translator, source, _resolve_names(settings.names))
    for part in parts:
        with _naming(part.name):
            _survey(part, plan, root, on_progress)
            _choose(part, settings)
            _assign_languages(part, plan)
    return plan


def sample_language(part: PartPlan, sample: Sample, source: str) -> str:
    """The language that the sample's texts are in.

    Raises ``DataError`` if the row does not say, or says another one than the mixture takes it for.
    """
    if sample.language is None:
        if part.shares is not None or part.part.kind == "rows":  # mBLIP's own files have no languages in them
            return source
        raise DataError(
            f"{sample.where}: has no 'language', but the languages of part '{part.name}' are the rows' own."
        )
    code = find_language(sample.language).code
    if part.shares is not None and code != source and not is_table(part):
        raise DataError(
            f"{sample.where}: its language is '{sample.language}', but part '{part.name}' takes all texts for "
            f"'{source}'. Use parts.{part.name}.languages=row for texts that are in several languages already."
        )
    return code


def is_table(part: PartPlan) -> bool:
    """Whether the part's texts come in all languages from a table, so that there is nothing to translate or share."""
    return "classes" in part.kind.options


def _prepare_part(name: str, part: PartSettings, settings: MixSettings, root: Path) -> PartPlan:
    with _naming(name):
        kind = find_kind(part)
        instructions = find_instructions(part.kind, part.templates)
        instructions.check_slots((*kind.slots, "language"))
        if part.answer_language is not None:
            find_language(part.answer_language)
        shares = resolve_languages(part.languages or kind.languages or settings.languages)
        if "classes" in kind.options and shares is None:
            raise SettingsError("'languages: row' needs rows, but these languages come from a table", "languages")
        path = root / Path(part.path).expanduser()
        if not path.exists():
            raise SettingsError(f"path: there is no '{path}'", "path")
        return PartPlan(name, part, kind, Source(path, part, root, tuple(shares or ())), instructions, shares)


def _prepare_translator(settings: MixSettings, parts: list[PartPlan], root: Path, source: str) -> Translator | None:
    """Load the translator and ask it about every language that a part needs."""
    needed: dict[str, None] = {}
    for part in parts:
        if part.shares is not None and part.kind.translated:
            needed |= dict.fromkeys(code for code in part.shares if code != source)
    if settings.translator is None:
        if needed:
            shown = ", ".join(list(needed)[:5]) + (f" and {len(needed) - 5} more" if len(needed) > 5 else "")
            raise SettingsError(
                f"texts are in '{source}' and are wanted in {shown}, but there is no translator. Give one "
                "(translator.kind=file or model, and translator.path), choose languages=row for texts that are in "
                "several languages already, or leave texts as they are with translator.kind=identity",
                "translator",
            )
        return None
    translator = load_translator(settings.translator, root, source)
    translator.check(needed)
    return translator


def _resolve_names(names: str | dict[str, str]) -> dict[str, str]:
    if isinstance(names, str):
        if names not in TASK_NAMES:
            raise SettingsError(f"names: no task '{names}' has names of its own, only {', '.join(TASK_NAMES)}", "names")
        return TASK_NAMES[names]
    return {find_language(code).code: name for code, name in names.items()}


def _survey(part: PartPlan, plan: MixPlan, root: Path, on_progress: Progress) -> None:
    """Read every sample once: which can be used, how often answers come, some captions to choose wrong ones from."""
    missing = part.part.missing_pictures or plan.settings.missing_pictures
    folder = root / plan.settings.images
    is_there = lru_cache(maxsize=65536)(lambda name: (folder / name).is_file())
    rng = Random(f"{plan.settings.seed}/{part.name}/pool")
    seen: Counter[str] = Counter()
    for number, sample in enumerate(part.samples(), start=1):
        reason = sample.dropped
        if reason is None and is_too_long(part.part, sample):
            reason = "answer of too many sentences"
        if reason is None and missing != "ignore":
            absent = next((name for name in sample.images if not is_there(name)), None)
            if absent is not None and missing == "error":
                raise DataError(
                    f"{sample.where}: there is no picture '{folder / absent}'. Is 'images' right, that of the "
                    "mixture or of the part? missing_pictures=drop leaves such rows out, ignore does not look."
                )
            reason = "picture missing" if absent is not None else None
        part.chosen.append(reason is None)
        part.dropped.update([reason] if reason else [])
        if reason is None:
            language = sample_language(part, sample, plan.source_language)
            part.answers.update([sample.fields["answer"]] if part.part.translate_answers else [])
            if part.part.kind == "matching":
                seen[language] += 1
                _keep_some(part.pools.setdefault(language, Pool()), sample, seen[language], rng)
        if number % 1000 == 0:
            on_progress(f"reading {part.name}", number, None)


def _keep_some(pool: Pool, sample: Sample, number: int, rng: Random) -> None:
    """Keep ``POOL`` of all captions, each as likely (reservoir sampling); ``number`` counts them from 1."""
    place = number - 1 if number <= POOL else rng.randrange(number)
    if place < POOL:
        pool.put(place, sample.fields["caption"], sample.images[0])


def _choose(part: PartPlan, settings: MixSettings) -> None:
    """Keep what ``skip``, ``limit`` and ``sample`` leave of the usable samples."""
    usable = [place for place, is_usable in enumerate(part.chosen) if is_usable]
    end = None if part.part.limit is None else part.part.skip + part.part.limit
    kept = usable[part.part.skip : end]
    wanted = part.part.sample
    if wanted is not None:
        if wanted > len(kept):
            raise SettingsError(f"sample: {wanted:,} rows are asked for, but there are only {len(kept):,}", "sample")
        kept = Random(f"{settings.seed}/{part.name}/sample").sample(kept, wanted)
    if not kept:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in part.dropped.items())
        raise DataError(f"{part.source.path}: no row is left of it. {reasons or f'skip is {part.part.skip:,}'}.")
    part.dropped.update({"not chosen": len(usable) - len(kept)} if len(kept) < len(usable) else {})
    part.chosen = bytearray(len(part.chosen))
    for place in kept:
        part.chosen[place] = 1


def _assign_languages(part: PartPlan, plan: MixPlan) -> None:
    if part.shares is None or is_table(part):
        counts: Counter[str] = Counter()
        for _, sample in part.chosen_samples():
            counts[sample_language(part, sample, plan.source_language)] += 1
        part.rows = dict(counts)
        return
    part.rows = share_out(part.total, part.shares, plan.settings.min_rows)
    part.places = assign(part.rows, Random(f"{plan.settings.seed}/{part.name}/languages"))


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Inside this block, wrong settings are told with the part's name."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(f"part '{name}': {error}", f"parts.{name}") from error
