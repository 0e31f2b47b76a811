// The box of pictures: choose, add and remove them, draw on the one that is shown, put a mark's word into the question.
// Runs behind drawing.js, with Gradio's `element`, `props`, `server`, `trigger` and `watch`. The server keeps the
// pictures and shows them as the model will see them; the value is JSON of their ids and of what was drawn.

const MAX_NUMBERS = 4096; // of the lines of one mark, as the server takes them
const OPACITY = 128 / 255; // that of marks which models were trained on
const BLOB = 'M8 4.5c5-2.2 12 1.5 12 7.5s-5 8.5-10 8-7-5-6-9 1-5 4-6.5z';
const TOOLS = {
  'rectangle': ['Rectangle', '<rect x="4" y="6" width="16" height="12"/>'],
  'ellipse': ['Ellipse', '<ellipse cx="12" cy="12" rx="9" ry="6.5"/>'],
  'arrow': ['Arrow, from its tail to its tip', '<path d="M5 19L18 6M10 6h8v8"/>'],
  'point': ['Point', '<circle cx="12" cy="12" r="4.5" fill="currentColor"/>'],
  'scribble': ['Pen, for free strokes', '<path d="M3 16c3-9 6-9 6-2.5s3 6.5 5 0 4-6.5 7-2"/>'],
  'triangle': ['Triangle', '<path d="M12 5l8 14H4z"/>'],
  'mask contour': ['Outline around a thing', `<path d="${BLOB}" stroke-dasharray="4 2.5"/>`],
  'mask': ['Area of a thing', `<path d="${BLOB}" fill="currentColor" fill-opacity=".45"/>`],
};
const UNDO = '<path d="M9 6L4 11l5 5M4 11h10a5 5 0 0 1 0 10h-3"/>';
const CLEAR = '<path d="M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13"/>';

const view = {pictures: [], shown: 0, shape: 'rectangle', color: 'red', past: [], path: null, lit: null};
let sent = props.value; // the value as this side made it; another one comes from the server
let marked = 0; // marks that there have been

// Building the page

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (value !== false) made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children);
  return made;
}

function icon(drawn) {
  const holder = make('span', {class: 'icon', 'aria-hidden': 'true'});
  holder.innerHTML = `<svg viewBox="0 0 24 24">${drawn}</svg>`;
  return holder;
}

const root = element.querySelector('.pictures-box');
const files = make('input', {
  type: 'file', multiple: true, tabindex: -1, accept: 'image/*,video/*', 'aria-label': props.label, onchange: () => take(files.files),
});
const canvas = make('canvas', {'aria-label': 'The picture; drag on it to mark something'});
const empty = make('button', {class: 'empty', type: 'button', onclick: () => files.click()},
  icon('<path d="M12 16V5m-5 5l5-5 5 5M4 16v4h16v-4"/>'),
  make('b', {}, 'Drop pictures or a video here'), make('span', {}, 'or click to choose, or paste'));
const stage = make('div', {class: 'stage'}, canvas, empty);
const shapes = make('div', {class: 'group', role: 'radiogroup', 'aria-label': 'Shape'});
const colors = make('div', {class: 'group', role: 'radiogroup', 'aria-label': 'Colour'});
const undo = make('button', {type: 'button', title: 'Undo', 'aria-label': 'Undo', onclick: undoLast}, icon(UNDO));
const clear = make('button', {type: 'button', title: 'Remove all marks', 'aria-label': 'Remove all marks',
  onclick: () => change(() => { for (const picture of view.pictures) picture.regions = []; })}, icon(CLEAR));
const tools = make('div', {class: 'tools', role: 'toolbar'}, shapes, colors, make('div', {class: 'group'}, undo, clear));
const strip = make('div', {class: 'strip'});
const list = make('ul', {class: 'marks', 'aria-label': 'Marks'});
const hint = make('p', {class: 'hint'}, 'A click on a mark puts it into the question.');
const said = make('p', {class: 'said', role: 'status'});
root.append(files, stage, ...(props.draws ? [tools] : []), strip, ...(props.draws ? [list] : []), ...(props.question ? [hint] : []), said);

for (const [shape, [what, drawn]] of Object.entries(TOOLS)) {
  shapes.append(make('button', {type: 'button', role: 'radio', title: what, 'aria-label': what, 'data-shape': shape,
    onclick: () => { view.shape = shape; chooseFreeColor(); render(); }}, icon(drawn)));
}
for (const color of props.colors) {
  colors.append(make('button', {type: 'button', role: 'radio', title: color, 'aria-label': color, 'data-color': color,
    style: `--ink: ${color}`, onclick: () => { view.color = color; render(); }}));
}

// What is there

const shownPicture = () => view.pictures[view.shown];
const allMarks = () => view.pictures.flatMap((picture) => picture.regions.map((region) => ({picture, region})));
const wordsOf = ({shape, color}) => `${props.words[shape]} the ${color} ${shape}`;
const scaleOf = (picture) => Math.max(picture.width, picture.height) / props.anchor;
const widthOf = (shape, picture) => Math.max(1, Math.floor((props.widths[shape] || 1) * scaleOf(picture)));

function tell(message) {
  said.textContent = message;
}

// Every change goes through here: words in the question follow their marks, and the server's side learns of it.
function change(edit, {keepsPast = true, pictures = false} = {}) {
  const before = allMarks().map((mark) => mark.region.id);
  const past = JSON.stringify(view.pictures.map(({file, regions}) => [file, regions]));
  edit();
  if (keepsPast) view.past.push(past);
  if (pictures) view.past = [];
  tell('');
  renumber(before, allMarks().map((mark) => mark.region.id));
  send();
  if (pictures) trigger('upload');
  render();
}

function send() {
  const plain = ({id, ...region}) => region;
  const pictures = view.pictures.map(({file, name, regions}) => ({file, name, regions: regions.map(plain)}));
  props.value = root.dataset.value = sent = JSON.stringify({pictures});
  trigger('input');
}

function undoLast() {
  if (!view.past.length) return;
  const past = new Map(JSON.parse(view.past.pop()));
  change(() => { for (const picture of view.pictures) picture.regions = past.get(picture.file) || []; }, {keepsPast: false});
}

// The question

function questionField() {
  return props.question && document.querySelector(`#${props.question} textarea, #${props.question} input`);
}

function write(field, text, caret) {
  field.value = text;
  field.dispatchEvent(new Event('input', {bubbles: true}));
  field.setSelectionRange(caret, caret);
}

function insert(word) {
  const field = questionField();
  if (!field) return;
  const before = field.value.slice(0, field.selectionStart), after = field.value.slice(field.selectionEnd);
  const put = (/\S$/.test(before) ? ' ' : '') + word + (/^[\w<]/.test(after) ? ' ' : '');
  write(field, before + put + after, before.length + put.length);
  field.focus();
}

function renumber(before, after) {
  const field = questionField();
  if (!field || !/<bbox\d*>/.test(field.value)) return;
  const text = field.value.replace(/<bbox(\d*)>/g, (word, number) => {
    const now = after.indexOf(before[number || 0]);
    return before[number || 0] === undefined ? word : now < 0 ? '' : `<bbox${now}>`;
  });
  if (text !== field.value) write(field, text, text.length);
}

// Pictures that come and go

async function take(chosen) {
  for (const file of [...chosen]) {
    if (file.size > props.max_bytes) {
      tell(`${file.name}: ${file.size.toLocaleString('en')} bytes; at most ${props.max_bytes.toLocaleString('en')} can be sent.`);
      continue;
    }
    root.classList.add('busy');
    tell(`Sending ${file.name} …`);
    const answer = await server.keep({binary: true, data: {file}});
    root.classList.remove('busy');
    if (!answer || answer.error) tell(answer ? answer.error : `${file.name} could not be sent.`);
    else await add(answer.pictures);
  }
  files.value = '';
}

async function add(found) {
  const room = props.max_images - view.pictures.length;
  const added = await Promise.all(found.slice(0, room).map(opened));
  if (added.length) {
    change(() => { view.pictures.push(...added); view.shown = view.pictures.length - added.length; }, {pictures: true});
  }
  if (found.length > room) tell(`At most ${props.max_images} pictures are taken.`);
}

async function opened(found) {
  const image = new Image();
  image.src = found.preview;
  await image.decode();
  return {regions: [], ...found, image};
}

function remove(picture) {
  const at = view.pictures.indexOf(picture);
  change(() => {
    view.pictures.splice(at, 1);
    view.shown = Math.max(0, Math.min(view.shown > at ? view.shown - 1 : view.shown, view.pictures.length - 1));
  }, {pictures: true});
}

// The server's side has put other pictures here.
async function load(value) {
  const wanted = JSON.parse(value || '{}').pictures || [], pictures = [];
  sent = value;
  for (const {file, name, regions} of wanted) {
    const known = view.pictures.find((picture) => picture.file === file) || await server.look(file);
    if (!known || known.error) tell(known ? known.error : `${name} cannot be shown.`);
    else pictures.push({...(known.image ? known : await opened({...known, name})), regions: (regions || []).map(counted)});
  }
  if (value !== sent) return; // again other ones, meanwhile
  Object.assign(view, {pictures, shown: 0, past: []});
  chooseFreeColor();
  render();
}

const counted = (region) => ({...region, id: marked++});

// Drawing

function chooseFreeColor() {
  const taken = new Set(allMarks().filter(({region}) => region.shape === view.shape).map(({region}) => region.color));
  if (view.shape !== 'scribble' && taken.has(view.color)) {
    view.color = props.colors.find((color) => !taken.has(color)) || view.color;
  }
}

function pixelAt(event) {
  const {left, top, width, height} = canvas.getBoundingClientRect(), picture = shownPicture();
  const clamp = (value, most) => Math.min(Math.max(value, 0), most - 1);
  return [
    clamp((event.clientX - left) / width * picture.width - 0.5, picture.width),
    clamp((event.clientY - top) / height * picture.height - 0.5, picture.height),
  ];
}

const screenPixel = () => shownPicture().width / canvas.getBoundingClientRect().width;

function finish() {
  const path = view.path;
  view.path = null;
  const region = regionOf(view.shape, view.color, path, screenPixel());
  const scribble = region && region.shape === 'scribble' && shownPicture().regions.find(
    (other) => other.shape === 'scribble' && other.color === region.color && other.strokes);
  const numbers = [...(scribble ? scribble.strokes : []), ...(region && region.strokes || [region && region.polygon || []])].flat().length;
  if (!region) tell(view.shape.startsWith('mask') ? 'Draw around the thing.' : 'Drag from one corner to the other; an arrow, from its tail to its tip.');
  else if (numbers > MAX_NUMBERS) tell('That is too long for one mark; take another colour.');
  else if (!scribble && allMarks().length >= props.max_regions) tell(`At most ${props.max_regions} marks are taken.`);
  else if (scribble) change(() => { scribble.strokes = [...scribble.strokes, ...region.strokes]; });
  else change(() => { shownPicture().regions.push(counted(region)); chooseFreeColor(); });
  paint();
}

if (props.draws) {
  canvas.addEventListener('pointerdown', (event) => {
    if (!event.isPrimary || event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    view.path = [pixelAt(event)];
    event.preventDefault();
    paint();
  });
  canvas.addEventListener('pointermove', (event) => {
    if (!view.path || !event.isPrimary) return;
    const moves = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    view.path.push(...(moves.length ? moves : [event]).map(pixelAt));
    paint();
  });
  canvas.addEventListener('pointerup', (event) => { if (view.path && event.isPrimary) finish(); });
  canvas.addEventListener('pointercancel', () => { view.path = null; paint(); });
  root.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') { view.path = null; paint(); }
    if (event.key === 'z' && (event.ctrlKey || event.metaKey)) { undoLast(); event.preventDefault(); }
  });
}

function paint() {
  const picture = shownPicture();
  if (!picture || !stage.clientWidth) return;
  const fit = Math.min(stage.clientWidth / picture.width, props.height / picture.height), dots = window.devicePixelRatio || 1;
  canvas.style.width = `${picture.width * fit}px`;
  canvas.width = Math.round(picture.width * fit * dots);
  canvas.height = Math.round(picture.height * fit * dots);
  const pen = canvas.getContext('2d'), zoom = canvas.width / picture.width;
  pen.imageSmoothingEnabled = zoom < 3 * dots;
  pen.imageSmoothingQuality = 'high';
  pen.drawImage(picture.image, 0, 0, canvas.width, canvas.height);
  const draft = view.path && regionOf(view.shape, view.color, view.path, screenPixel());
  for (const region of [...picture.regions, ...(draft ? [draft] : [])]) {
    const layer = make('canvas', {width: canvas.width, height: canvas.height}), ink = layer.getContext('2d');
    ink.setTransform(zoom, 0, 0, zoom, zoom / 2, zoom / 2);
    sketch(ink, {...region, scale: scaleOf(picture)}, widthOf(region.shape, picture));
    pen.globalAlpha = region.id !== undefined && region.id === view.lit ? 1 : OPACITY;
    pen.drawImage(layer, 0, 0);
    pen.globalAlpha = 1;
  }
}

// Showing what is there

function render() {
  const picture = shownPicture(), marks = allMarks();
  root.classList.toggle('filled', Boolean(picture));
  for (const [group, key, chosen] of [[shapes, 'shape', view.shape], [colors, 'color', view.color]]) {
    for (const button of group.children) button.setAttribute('aria-checked', button.dataset[key] === chosen);
  }
  undo.disabled = !view.past.length;
  clear.disabled = !marks.length;
  strip.replaceChildren(...view.pictures.map(thumbnail), ...(picture ? [make('button', {
    class: 'more', type: 'button', title: 'Add pictures', 'aria-label': 'Add pictures', onclick: () => files.click()}, '+')] : []));
  list.replaceChildren(...marks.map(({picture, region}, number) => chip(picture, region, number)));
  const words = marks.map(({region}) => wordsOf(region));
  const twice = words.find((word, number) => words.indexOf(word) !== number);
  if (twice) tell(`Two marks are “${twice}”: give one another colour, or no words can tell them apart.`);
  paint();
}

function thumbnail(picture, number) {
  const chosen = number === view.shown;
  return make('div', {class: chosen ? 'thumbnail chosen' : 'thumbnail'},
    make('button', {type: 'button', title: picture.name, 'aria-label': `Show ${picture.name}`, 'aria-pressed': chosen,
      onclick: () => { view.shown = number; render(); }}, make('img', {src: picture.preview, alt: picture.name})),
    make('button', {class: 'remove', type: 'button', title: 'Remove', 'aria-label': `Remove ${picture.name}`,
      onclick: () => remove(picture)}, '×'));
}

function chip(picture, region, number) {
  const word = `<bbox${number}>`, light = (id) => () => { view.lit = id; paint(); };
  return make('li', {onpointerenter: light(region.id), onpointerleave: light(null)},
    make('button', {class: 'word', type: 'button', title: `Put ${word} into the question`, onclick: () => insert(word)},
      make('i', {style: `--ink: ${region.color}`}), make('code', {}, word), ` ${wordsOf(region)}`,
      ...(view.pictures.length > 1 ? [make('small', {}, ` picture ${view.pictures.indexOf(picture) + 1}`)] : [])),
    make('button', {class: 'remove', type: 'button', title: 'Remove', 'aria-label': `Remove ${word}`,
      onclick: () => change(() => { picture.regions = picture.regions.filter((other) => other !== region); })}, '×'));
}

// What comes from outside of the box

root.addEventListener('dragover', (event) => { event.preventDefault(); root.classList.add('over'); });
root.addEventListener('dragleave', () => root.classList.remove('over'));
root.addEventListener('drop', (event) => {
  event.preventDefault();
  root.classList.remove('over');
  take(event.dataTransfer.files);
});
document.addEventListener('paste', (event) => {
  const pasted = event.clipboardData ? event.clipboardData.files : [];
  const field = questionField(), isHere = [field, document.body].includes(event.target) || root.contains(event.target);
  if (pasted.length && isHere && root.offsetParent && root.isConnected) { event.preventDefault(); take(pasted); }
});
watch('value', () => { if (props.value !== sent) load(props.value); });
new ResizeObserver(paint).observe(stage);
load(props.value);
