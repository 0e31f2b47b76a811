"""The page's chat: one model, or two side by side, about the pictures in the box."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr
from anyio.to_thread import run_sync

from sightbridge.serving.api.api_error import ApiError
from sightbridge.serving.api.state import State
from sightbridge.serving.web.asking import write_answers
from sightbridge.serving.web.controls import Controls, read_controls
from sightbridge.serving.web.examples import examples
from sightbridge.serving.web.pictures_box import PicturesBox
from sightbridge.serving.web.talk import AskedPicture, Talk
from sightbridge.serving.web.toast import warn
from sightbridge.serving.web.transcript import answer_at, as_typed, exchange_at, transcript
from sightbridge.serving.web.votes import ONE, TWO, Votes

NOBODY = "no other model"
WELCOME = "Add a picture, or choose an example, and ask about it."
EXAMPLES_SCRIPT = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-number]');
  if (!button) return;
  trigger('select', {index: Number(button.dataset.number), value: ''});
  document.querySelector('#question textarea').focus();
});
"""


class ChatTab:
    """The components of the chat, and what happens when they are used. Make it inside of ``gr.Blocks``."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.votes = Votes(state.votes) if state.votes else None
        self.models = [name for name, model in state.models.by_name.items() if model.engine]
        self.running: dict[str | None, Talk] = {}
        self._make()
        self._connect()

    def _make(self) -> None:
        self.talk = gr.State(lambda: Talk())
        with gr.Row(elem_id="chat-tab"):
            with gr.Column(scale=5, min_width=320, elem_id="seen"):
                self.box = PicturesBox(self.state, question="question")
                self._make_examples()
            with gr.Column(scale=7, min_width=320, elem_id="said"):
                with gr.Row(elem_id="models"):
                    self.model = gr.Dropdown(self.models, value=self.models[0], label="Model", min_width=140)
                    self.other = gr.Dropdown(
                        [NOBODY, *self.models], value=NOBODY, label="Side by side with", min_width=140,
                        visible=len(self.models) > 1,
                    )  # fmt: skip
                with gr.Row(elem_id="chats"):
                    self.chats = [self._make_chat(side) for side in range(2)]
                self._make_question()
                self.controls = Controls(self.state)

    def _make_chat(self, side: int) -> gr.Chatbot:
        return gr.Chatbot(
            label=self.models[0] if side == 0 else NOBODY,
            elem_id=f"chat-{side}",
            visible=side == 0,
            min_width=260,
            height=520,
            render_markdown=False,
            editable="user",
            buttons=["copy"],
            feedback_options=tuple(ONE),
            placeholder=WELCOME,
            group_consecutive_messages=False,
            layout="bubble",
        )

    def _make_question(self) -> None:
        with gr.Row(elem_id="votes", visible=False) as self.vote_row:
            self.vote_buttons = [gr.Button(label, size="sm", min_width=60) for label in TWO]
        self.question = gr.Textbox(
            label="Question",
            show_label=False,
            placeholder="Ask about the pictures",
            elem_id="question",
            lines=1,
            max_lines=8,
            max_length=self.state.settings.max_characters,
            submit_btn=True,
            autofocus=True,
        )
        with gr.Row(elem_id="actions"):
            self.again = gr.Button("Regenerate", size="sm", min_width=90, elem_id="again")
            self.undo = gr.Button("Undo", size="sm", min_width=70, elem_id="undo")
            self.clear = gr.Button("New conversation", size="sm", min_width=110, elem_id="clear")

    def _make_examples(self) -> None:
        with gr.Row(elem_id="examples-head"):
            gr.HTML("<h3>Examples</h3>")
            self.language = gr.Dropdown(
                list(examples()[0].asked), value="English", show_label=False, container=False, min_width=120,
                elem_id="example-language",
            )  # fmt: skip
        self.examples = gr.HTML(_write_examples("English"), js_on_load=EXAMPLES_SCRIPT, elem_id="examples")

    def _connect(self) -> None:
        shown = [*self.chats, self.question, self.vote_row]
        asked = [self.talk, self.box.component, self.model, self.other, *self.controls.components]
        several: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
        quick: dict[str, Any] = {"queue": True, **several}
        gr.on([self.question.submit], self.ask, [self.question, *asked], shown, **several)
        self.again.click(self.regenerate, asked, shown, **several)
        self.question.stop(self.stop, self.talk, None, **quick)
        self.undo.click(self.take_back, [self.talk, self.other], shown, **quick)
        self.clear.click(self.begin_anew, [self.talk, self.other], shown, **quick)
        for side, chat in enumerate(self.chats):
            chat.edit(self.edit(side), asked, shown, **several)
            if self.votes:
                chat.like(self.vote_for_one(side), self.talk, None, **quick)
        if self.votes:
            for button, label in zip(self.vote_buttons, TWO, strict=True):
                button.click(self.vote_for_two(label), self.talk, self.vote_row, **quick)
        gr.on(
            [self.model.change, self.other.change], self.choose, [self.talk, self.model, self.other], shown[:2], **quick
        )
        self.language.change(_write_examples, self.language, self.examples, **quick)
        self.examples.select(self.show_example, self.language, [self.box.component, self.question], **quick)

    async def ask(
        self, request: gr.Request, question: str, talk: Talk, box: Any, model: str, other: str, *controls: Any
    ) -> AsyncIterator[list[Any]]:
        """Answer a question about what the box shows."""
        try:
            self._check_idle(talk)
            pictures = await self._read_pictures(box)
            settings, system, words = read_controls(controls, question)
            if not words.strip():
                raise ApiError(400, "Write a question first.")
        except ApiError as error:
            warn(error.message)
            yield [gr.skip()] * 4
            return
        if talk.ask(words, pictures):
            gr.Info("The pictures are others than before: a new conversation begins.")
        async for update in self._answer(talk, model, other, settings, system, request):
            yield update

    async def regenerate(
        self, request: gr.Request, talk: Talk, box: Any, model: str, other: str, *controls: Any
    ) -> AsyncIterator[list[Any]]:
        """Answer the last question once more."""
        if not talk.exchanges:
            warn("There is no question yet.")
            yield [gr.skip()] * 4
            return
        async for update in self.ask_again(request, talk, -1, None, box, model, other, controls):
            yield update

    def edit(self, side: int) -> Any:
        """What an edit in a side's conversation does: ask in other words, and forget what followed."""

        async def ask_edited(
            request: gr.Request, edited: gr.EditData, talk: Talk, box: Any, model: str, other: str, *controls: Any
        ) -> AsyncIterator[list[Any]]:
            number = exchange_at(talk, side, edited.index)
            async for update in self.ask_again(
                request, talk, number, as_typed(str(edited.value)), box, model, other, controls
            ):
                yield update

        return ask_edited

    async def ask_again(
        self, request: Any, talk: Talk, number: int, words: str | None, box: Any, model: str, other: str, controls: Any
    ) -> AsyncIterator[list[Any]]:
        """Go back to a question and ask it, or others ``words``."""
        if talk.is_busy:
            warn("An answer is being written; stop it first.")
            yield [gr.skip()] * 4
            return
        before = talk.take_back(number)
        async for update in self.ask(request, words or before, talk, box, model, other, *controls):
            yield update

    async def _answer(
        self, talk: Talk, model: str, other: str, settings: dict[str, Any], system: str, request: gr.Request
    ) -> AsyncIterator[list[Any]]:
        models = [model] if other == NOBODY else [model, other]
        client = request.client.host if request.client else None
        self.running[request.session_hash] = talk
        try:
            async with aclosing(write_answers(talk, models, settings, system, self.state, client)) as news:
                async for _ in news:
                    yield [*self._show(talk, other), _while_writing(), gr.update(visible=False)]
        except ApiError as error:
            warn(error.message)
        finally:
            self.running.pop(request.session_hash, None)
        last = talk.exchanges[-1]
        words = last.question if last.has_failed else ""
        can_vote = bool(self.votes) and len(models) == 2 and all(answer.text for answer in last.answers)
        yield [*self._show(talk, other), _when_idle(words), gr.update(visible=can_vote)]

    def stop(self, talk: Talk) -> None:
        """End the answers that are being written."""
        talk.stop()

    def leave(self, request: gr.Request) -> None:
        """End what is being written for a page that was closed."""
        if talk := self.running.get(request.session_hash):
            talk.stop()

    def take_back(self, talk: Talk, other: str) -> list[Any]:
        """Forget the last question; its words are put back to be changed."""
        if talk.is_busy or not talk.exchanges:
            return [gr.skip()] * 4
        words = talk.take_back()
        return [*self._show(talk, other), words, gr.update(visible=False)]

    def begin_anew(self, talk: Talk, other: str) -> list[Any]:
        """Forget everything but the pictures."""
        if talk.is_busy:
            return [gr.skip()] * 4
        talk.exchanges.clear()
        return [*self._show(talk, other), gr.skip(), gr.update(visible=False)]

    def choose(self, talk: Talk, model: str, other: str) -> list[Any]:
        """Show one conversation, or two, with the models' names."""
        first, second = self._show(talk, other)
        return [first | {"label": model}, second | {"label": other}]

    def show_example(self, language: str, chosen: gr.SelectData) -> list[Any]:
        """Put an example's picture into the box, and its question."""
        example = examples()[int(chosen.index) % len(examples())]  # type: ignore[arg-type]
        return [self.box.value([(example.name, example.data)]), example.asked[language][0]]

    def vote_for_one(self, side: int) -> Any:
        """What a vote on an answer of a side does."""

        def vote(request: gr.Request, liked: gr.LikeData, talk: Talk) -> None:
            kind = liked.liked if isinstance(liked.liked, str) else ("Like" if liked.liked else "Dislike")
            number = answer_at(talk, side, liked.index)
            if self.votes and kind in ONE and number is not None:
                self.votes.add(ONE[kind], talk, number, [side], request.client.host if request.client else None)
                gr.Info("Thank you. Your vote is written down.", duration=3)

        return vote

    def vote_for_two(self, label: str) -> Any:
        """What a vote on two answers does."""

        def vote(request: gr.Request, talk: Talk) -> Any:
            if self.votes and talk.exchanges and len(talk.exchanges[-1].answers) == 2:
                client = request.client.host if request.client else None
                self.votes.add(TWO[label], talk, len(talk.exchanges) - 1, [0, 1], client)
                gr.Info("Thank you. Your vote is written down.", duration=3)
            return gr.update(visible=False)

        return vote

    def choose_by_address(self, request: gr.Request) -> Any:
        """Choose the model that the page's address names: ``?model=NAME``."""
        name = request.query_params.get("model")
        if name is None:
            return gr.skip()
        if name not in self.models:
            warn(f"There is no model '{name[:80]}' here that answers questions.")
            return gr.skip()
        return name

    def _check_idle(self, talk: Talk) -> None:
        if talk.is_busy:
            raise ApiError(409, "An answer is being written; stop it first.")

    async def _read_pictures(self, box: Any) -> list[AskedPicture]:
        shown = self.box.read(box, self.state)
        self.state.pictures.check_count(len(shown), sum(len(picture.regions) for picture in shown))
        return [await run_sync(AskedPicture.of, picture, self.box.anchor) for picture in shown]

    def _show(self, talk: Talk, other: str) -> list[Any]:
        return [
            gr.update(value=transcript(talk, 0)),
            gr.update(value=transcript(talk, 1) if other != NOBODY else [], visible=other != NOBODY),
        ]


def _while_writing() -> Any:
    return gr.update(value="", submit_btn=False, stop_btn=True, placeholder="The answer is being written …")


def _when_idle(words: str) -> Any:
    return gr.update(value=words, submit_btn=True, stop_btn=False, placeholder="Ask about the pictures")


def _write_examples(language: str) -> str:
    """The examples as buttons."""
    buttons = (
        f'<button type="button" data-number="{number}"><img src="{example.thumbnail}" alt="">'
        f"<span>{example.asked[language][0]}</span></button>"
        for number, example in enumerate(examples())
    )
    return f'<div class="examples">{"".join(buttons)}</div>'
