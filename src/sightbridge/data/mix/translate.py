"""Translators: none, a table made beforehand, or any Hugging Face sequence-to-sequence model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sightbridge.data.mix.files import read_object, read_text
from sightbridge.data.mix.settings import TranslatorSettings
from sightbridge.errors import DataError, SettingsError, nearest
from sightbridge.text.languages import ALL_LANGUAGES, find_language


class Translator(ABC):
    """Translates from the mixture's source language. A text without translation becomes ``None``."""

    missing = "no translation"
    """Why rows are dropped whose texts have none."""

    @abstractmethod
    def check(self, languages: Iterable[str]) -> None:
        """Raise ``SettingsError`` or ``DataError`` if it cannot translate into one of ``languages``."""

    @abstractmethod
    def translate(self, texts: Sequence[str], language: str, *, optional: bool = False) -> list[str | None]:
        """Translate ``texts`` into ``language``. ``optional``: the row does without them, so they may be missing."""

    @abstractmethod
    def translate_back(self, texts: Sequence[str], language: str) -> list[str | None]:
        """Translate ``texts`` from ``language``."""


class Identity(Translator):
    """Leaves every text as it is: for texts that need no translation, and for trying a mixture out."""

    def check(self, languages: Iterable[str]) -> None:
        """Any language will do."""

    def translate(self, texts: Sequence[str], language: str, *, optional: bool = False) -> list[str | None]:
        """The same texts."""
        return list(texts)

    def translate_back(self, texts: Sequence[str], language: str) -> list[str | None]:
        """The same texts."""
        return list(texts)


class FileTranslator(Translator):
    """Looks translations up in tables; see ``TranslatorSettings.path`` for their form."""

    def __init__(self, path: Path, missing: str) -> None:
        self.path = path
        self.is_strict = missing == "error"
        self._tables: dict[str, dict[str, str]] = {} if path.is_dir() else _read_tables(path)
        self._back: dict[str, dict[str, str]] = {}

    def check(self, languages: Iterable[str]) -> None:
        """Every language must have its table."""
        for language in languages:
            self._table(language)

    def translate(self, texts: Sequence[str], language: str, *, optional: bool = False) -> list[str | None]:
        """Look ``texts`` up. Raises ``DataError`` for one that is missing and may not be."""
        table = self._table(language)
        if self.is_strict and not optional:
            for text in texts:
                if text not in table:
                    raise DataError(
                        f"{self.path}: has no translation into '{language}' of '{text}'. Add it, or drop such rows "
                        "with translator.missing=drop"
                    )
        return [table.get(text) for text in texts]

    def translate_back(self, texts: Sequence[str], language: str) -> list[str | None]:
        """Find what ``texts`` are translations of; of several, the first in the table."""
        if language not in self._back:
            self._back[language] = {there: here for here, there in reversed(self._table(language).items())}
        return [self._back[language].get(text) for text in texts]

    def _table(self, language: str) -> dict[str, str]:
        if language not in self._tables:
            if not self.path.is_dir():
                known = ", ".join(self._tables)
                raise DataError(f"{self.path}: has no translations into '{language}', only into {known}.")
            self._tables[language] = _read_table(self.path, language)
        return self._tables[language]


class ModelTranslator(Translator):
    """Translates with a model: NLLB's and mBART's language tokens, M2M100's too, or a written ``prefix``.

    Batches are sorted by length; texts that come twice are translated once.
    """

    missing = "too long to translate"

    def __init__(self, settings: TranslatorSettings, path: Path, source: str) -> None:
        from transformers import AutoTokenizer

        self.settings = settings
        self.path = path
        self.source = source
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"translator.path: {path} is no folder of a translation model: {str(error).splitlines()[0]}",
                "translator.path",
            ) from error
        self._model: Any = None

    def check(self, languages: Iterable[str]) -> None:
        """The tokenizer must know every language."""
        if self.settings.prefix is None:
            for language in (self.source, *languages):
                self._language_token(language)

    def translate(self, texts: Sequence[str], language: str, *, optional: bool = False) -> list[str | None]:
        """Translate ``texts``; a text of more than ``max_tokens`` tokens has no translation."""
        return self._run(texts, self.source, language)

    def translate_back(self, texts: Sequence[str], language: str) -> list[str | None]:
        """Translate the other way round."""
        return self._run(texts, language, self.source)

    def _run(self, texts: Sequence[str], source: str, target: str) -> list[str | None]:
        done: dict[str, str | None] = dict.fromkeys(texts)
        tokenize, options = self._prepare(source, target)
        lengths = {text: len(tokenize(text).input_ids) for text in done}
        fitting = sorted((t for t in done if lengths[t] <= self.settings.max_tokens), key=lambda t: (lengths[t], t))
        for start in range(0, len(fitting), self.settings.batch_size):
            batch = fitting[start : start + self.settings.batch_size]
            inputs = tokenize(batch, return_tensors="pt", padding=True).to(self.model.device)
            ids = self.model.generate(
                **inputs,
                **options,
                do_sample=False,
                num_beams=self.settings.beams,
                max_new_tokens=self.settings.max_tokens,
            )
            said = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
            done |= {text: translation.strip() for text, translation in zip(batch, said, strict=True)}
        return [done[text] for text in texts]

    def _prepare(self, source: str, target: str) -> tuple[Callable[..., Any], dict[str, Any]]:
        """How texts are tokenised, and what generation needs to know."""
        if self.settings.prefix is not None:
            prefix = self.settings.prefix.format(
                source=ALL_LANGUAGES[source].name, language=ALL_LANGUAGES[target].name, code=target
            )

            def tokenize(texts: str | list[str], **options: Any) -> Any:
                prefixed = prefix + texts if isinstance(texts, str) else [prefix + text for text in texts]
                return self.tokenizer(prefixed, **options)

            return tokenize, {}
        self.tokenizer.src_lang = self._code(source)
        return self.tokenizer, {"forced_bos_token_id": self._language_token(target)}

    def _code(self, language: str) -> str:
        given = {find_language(name).code: code for name, code in self.settings.codes.items()}
        # NLLB's code, unless the model knows the short one (M2M100)
        has_short = hasattr(self.tokenizer, "get_lang_id")
        return given.get(language, language if has_short else ALL_LANGUAGES[language].nllb)

    def _language_token(self, language: str) -> int:
        code = self._code(language)
        written = f"__{code}__" if hasattr(self.tokenizer, "get_lang_id") else code
        token = self.tokenizer.convert_tokens_to_ids(written)
        if token is None or token == self.tokenizer.unk_token_id:
            known = [str(token) for token in self.tokenizer.all_special_tokens]
            raise SettingsError(
                f"translator: the model in {self.path} has no language '{code}' ({ALL_LANGUAGES[language].name})."
                f"{nearest(code, known)} Give its own code with translator.codes.{language}=CODE, or "
                "translator.prefix for a model without language tokens",
                "translator.codes",
            )
        return token

    @property
    def model(self) -> Any:
        """The model, loaded when the first text needs it."""
        if self._model is None:
            import torch
            from transformers import AutoModelForSeq2SeqLM

            device = self.settings.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            model = AutoModelForSeq2SeqLM.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
            self._model = model.eval().to(device)
        return self._model


def load_translator(settings: TranslatorSettings, root: Path, source: str) -> Translator:
    """The translator of a mixture; raises ``SettingsError`` for a path that is missing or leads nowhere."""
    if settings.kind == "identity":
        return Identity()
    if settings.path is None:
        raise SettingsError(f"translator.path: a translator of kind '{settings.kind}' needs one", "translator.path")
    path = root / Path(settings.path).expanduser()
    if not path.exists():
        raise SettingsError(f"translator.path: there is no '{path}'", "translator.path")
    if settings.kind == "file":
        return FileTranslator(path, settings.missing)
    return ModelTranslator(settings, path, source)


def _read_table(folder: Path, language: str) -> dict[str, str]:
    names = (language, *ALL_LANGUAGES[language].aliases)
    found = [folder / f"{name}{ending}" for name in names for ending in (".json", ".tsv")]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise DataError(
            f"{folder}: has no translations into '{language}'; expected {found[0].name} or {found[1].name}."
        )
    if path.suffix == ".json":
        return _check_table(read_object(path), str(path))
    table: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        source, tab, translation = line.partition("\t")
        if not tab or "\t" in translation:
            raise DataError(f"{path}, line {number}: expected a text, a tab and its translation.")
        table[source] = translation
    return table


def _read_tables(path: Path) -> dict[str, dict[str, str]]:
    content = read_object(path)
    return {find_language(name).code: _check_table(table, f"{path}, '{name}'") for name, table in content.items()}


def _check_table(table: Any, where: str) -> dict[str, str]:
    if not isinstance(table, dict):
        raise DataError(f"{where}: expected an object {{text: translation}}.")
    for text, translation in table.items():
        if not isinstance(translation, str) or not translation.strip():
            raise DataError(f"{where}, '{text}': expected a translation, got {translation!r}.")
    return table
