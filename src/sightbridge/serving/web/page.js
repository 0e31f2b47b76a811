// What gradio's components leave undone, for all of the page.
() => {
  // Text from outside is kept from being read as markup by an invisible character (transcript.py): copies have none.
  const clean = (text) => text.replaceAll('\u2060', '');
  document.addEventListener('copy', (event) => {
    const text = String(getSelection());
    if (clean(text) === text) return;
    event.clipboardData.setData('text/plain', clean(text));
    event.preventDefault();
  });
  const clipboard = navigator.clipboard; // not there over http from another machine
  if (clipboard) {
    const write = clipboard.writeText.bind(clipboard);
    clipboard.writeText = (text) => write(clean(text));
  }
  // What is typed into a list of choices looks for one, and does not stand behind the one that is chosen.
  const isChoice = (target) => target.matches?.('input[role="combobox"]');
  document.addEventListener('focusin', ({target}) => {
    if (isChoice(target)) setTimeout(() => target.select());
  });
  // Who leaves a list by Tab leaves none open: gradio opens it for every key.
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Tab' && isChoice(event.target)) event.stopPropagation();
  }, {capture: true});
}
