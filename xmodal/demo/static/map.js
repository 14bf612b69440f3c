// The map: a canvas of points to wander in. A point that is clicked is the next query; what was found is marked.
const canvas = element.querySelector('canvas');
const ground = element.querySelector('.ground');
const tip = element.querySelector('.point');
const said = element.querySelector('.said');
const near = element.querySelector('.near');
const NEAR = 18; // pixels within which a point is meant
const maps = {};
const view = { x: 0, y: 0, zoom: 1 };
let which = 0;
let points = null;
let chosen = -1; // under the pointer or reached by keys
let asked = -1; // the query itself
let found = []; // in order
let dragged = null;

const style = (name) => getComputedStyle(ground).getPropertyValue(name).trim();
const scale = () => (Math.min(canvas.clientWidth, canvas.clientHeight) / 2 - 16) * view.zoom;
const across = (i) => canvas.clientWidth / 2 + (points.x[i] - view.x) * scale();
const down = (i) => canvas.clientHeight / 2 - (points.y[i] - view.y) * scale();

function dot(context, i, radius, color) {
  context.beginPath();
  context.arc(across(i), down(i), radius, 0, 2 * Math.PI);
  context.fillStyle = color;
  context.fill();
}

function ring(context, i, radius, color) {
  context.beginPath();
  context.arc(across(i), down(i), radius, 0, 2 * Math.PI);
  context.strokeStyle = color;
  context.lineWidth = 2;
  context.stroke();
}

function draw() {
  if (!points || !canvas.clientWidth) return;
  const density = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * density;
  canvas.height = canvas.clientHeight * density;
  const context = canvas.getContext('2d');
  context.scale(density, density);
  const colors = { images: style('--of-images'), captions: style('--of-captions') };
  const size = Math.min(5, 2.4 * Math.sqrt(view.zoom));
  context.globalAlpha = 0.6;
  points.x.forEach((_, i) => dot(context, i, size, colors[points.side[i]]));
  context.globalAlpha = 1;
  if (asked >= 0) {
    context.strokeStyle = style('--of-found');
    context.lineWidth = 1;
    found.forEach((i) => {
      context.beginPath();
      context.moveTo(across(asked), down(asked));
      context.lineTo(across(i), down(i));
      context.stroke();
    });
    ring(context, asked, 9, style('--of-found'));
    dot(context, asked, 5, colors[points.side[asked]]);
  }
  found.forEach((i) => dot(context, i, size + 2, style('--of-found')));
  if (chosen >= 0) ring(context, chosen, size + 5, style('--of-ink'));
}

function nearest(x, y) {
  let best = -1;
  let least = NEAR * NEAR;
  points.x.forEach((_, i) => {
    const distance = (across(i) - x) ** 2 + (down(i) - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  });
  return best;
}

function choose(i, isSpoken) {
  if (i === chosen) return;
  chosen = i;
  tip.hidden = i < 0;
  tip.replaceChildren();
  if (i >= 0) {
    if (points.side[i] === 'images') {
      const picture = new Image();
      picture.alt = '';
      picture.src = `photo/${which}?id=${encodeURIComponent(points.id[i])}&size=small`;
      picture.addEventListener('error', () => picture.remove());
      tip.append(picture);
    }
    const words = document.createElement('span');
    words.textContent = points.text[i]; // text, whatever it holds
    tip.append(words);
    tip.style.left = `${Math.max(0, Math.min(canvas.clientWidth - 190, across(i) + 14))}px`;
    tip.style.top = `${Math.max(0, Math.min(canvas.clientHeight - 170, down(i) + 14))}px`;
    if (isSpoken) said.textContent = `${points.side[i] === 'images' ? 'photo' : 'caption'}: ${points.text[i]}`;
  }
  draw();
}

function ask(i) {
  const data = { ask: 'item', item: points.id[i], of: String(which) };
  if (points.caption[i] !== null) data.caption = String(points.caption[i]);
  trigger('ask', data);
}

function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const before = scale();
  if (factor) view.zoom = Math.max(1, Math.min(60, view.zoom * factor));
  else Object.assign(view, { x: 0, y: 0, zoom: 1 });
  if (factor) {
    const moved = 1 / before - 1 / scale();
    view.x += (x - canvas.clientWidth / 2) * moved;
    view.y -= (y - canvas.clientHeight / 2) * moved;
  }
  ground.classList.toggle('close', view.zoom > 1);
  draw();
}

function step(dx, dy) {
  const from = chosen >= 0 ? chosen : Math.max(asked, 0);
  if (chosen < 0) return choose(from, true);
  let best = -1;
  let least = Infinity;
  points.x.forEach((_, i) => {
    const [x, y] = [across(i) - across(from), down(i) - down(from)];
    const along = x * dx + y * dy;
    if (i === from || along <= 0.5) return;
    const cost = along + 3 * Math.abs(x * dy - y * dx);
    if (cost < least) [best, least] = [i, cost];
  });
  if (best < 0) return undefined;
  const [x, y] = [across(best), down(best)];
  if (x < 0 || y < 0 || x > canvas.clientWidth || y > canvas.clientHeight) {
    Object.assign(view, { x: points.x[best], y: points.y[best] });
  }
  return choose(best, true);
}

function answered(shown) {
  if (!shown) return;
  const column = shown.querySelector(`.searched[data-index="${which}"]`);
  const hits = column ? [...column.querySelectorAll('[data-number]')] : [];
  near.replaceChildren(...hits.slice(0, 8).map((hit) => hit.cloneNode(true)));
  if (!points) return;
  const side = column?.querySelector('ol.captions') ? 'captions' : 'images';
  const rows = new Map(points.number.map((number, i) => [`${points.side[i]} ${number}`, i]));
  found = hits.map((hit) => rows.get(`${side} ${hit.dataset.number}`)).filter((i) => i !== undefined);
  const words = new URLSearchParams(shown.dataset.address);
  const caption = words.has('caption') ? Number(words.get('caption')) - 1 : null;
  const isHere = column?.dataset.holdsItem !== undefined; // else another thing goes by its id here
  asked = isHere ? points.id.findIndex((id, i) => id === words.get('item') && points.caption[i] === caption) : -1;
  draw();
}

async function load() {
  if (!maps[which]) {
    const answer = await fetch(`map/${which}`);
    if (!answer.ok) { said.textContent = 'There is no map of this index.'; return; }
    maps[which] = await answer.json();
  }
  points = maps[which];
  said.textContent = points.x.length ? '' : 'There is nothing to draw: this index holds codes, not vectors.';
  [chosen, asked, found] = [-1, -1, []];
  canvas.dataset.points = points.x.length;
  answered(document.querySelector('#results .answer'));
  zoom(0);
}

canvas.addEventListener('pointerdown', (event) => { dragged = { x: event.offsetX, y: event.offsetY, far: false }; });
canvas.addEventListener('pointermove', (event) => {
  if (!points) return;
  if (dragged && event.buttons) {
    const [dx, dy] = [event.offsetX - dragged.x, event.offsetY - dragged.y];
    if (!dragged.far && Math.hypot(dx, dy) < 5) return;
    Object.assign(dragged, { x: event.offsetX, y: event.offsetY, far: true });
    view.x -= dx / scale();
    view.y += dy / scale();
    choose(-1);
    draw();
  } else {
    choose(nearest(event.offsetX, event.offsetY));
    canvas.style.cursor = chosen >= 0 ? 'pointer' : '';
  }
});
canvas.addEventListener('pointerup', (event) => {
  const wasFar = dragged?.far;
  dragged = null;
  if (!points || wasFar) return;
  const i = nearest(event.offsetX, event.offsetY);
  choose(i);
  if (i >= 0) ask(i);
});
canvas.addEventListener('pointerleave', () => { if (points) choose(-1); });
canvas.addEventListener('wheel', (event) => {
  if (!points || !(event.ctrlKey || document.activeElement === canvas)) return; // else the page is scrolled
  event.preventDefault();
  zoom(event.deltaY < 0 ? 1.25 : 0.8, event.offsetX, event.offsetY);
}, { passive: false });
canvas.addEventListener('keydown', (event) => {
  if (!points) return;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (moves[event.key]) step(...moves[event.key]);
  else if (event.key === 'Enter' && chosen >= 0) ask(chosen);
  else if (event.key === '+') zoom(1.6);
  else if (event.key === '-') zoom(0.625);
  else if (event.key === '0') zoom(0);
  else return;
  event.preventDefault();
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-zoom]');
  if (button) zoom(Number(button.dataset.zoom));
  const hit = event.target.closest('.near [data-ask]');
  if (hit) trigger('ask', { ...hit.dataset });
});
element.addEventListener('change', (event) => {
  if (event.target.name !== 'map-of') return;
  which = Number(event.target.value);
  load();
});
addEventListener('xmodal:answer', (event) => answered(event.detail));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => setTimeout(draw, 50));
new ResizeObserver(() => { if (points) draw(); else if (canvas.clientWidth) load(); }).observe(canvas);
