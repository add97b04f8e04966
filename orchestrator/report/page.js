'use strict';
// The page is complete without this script. It adds: zooming into curves and reading their values, switching lines and
// masks on and off. What it shows comes from the page itself; it writes text only as text.

document.documentElement.classList.add('scripted');

// ---------------------------------------------------------------------------------------------- the graph
for (const svg of document.querySelectorAll('svg.chain')) {
  const frame = svg.parentElement;
  frame.scrollLeft = (frame.scrollWidth - frame.clientWidth) / 2;
}

// ---------------------------------------------------------------------------------------------- curves
// Places in a chart, as charts.py draws it. Inside of the plane, u counts steps from the first one and v
// ten-thousandths of the height from the top.
const WIDTH = 560, LEFT = 56, RIGHT = 538, TOP = 12, BOTTOM = 218, PLANE = 10000;
const charts = new WeakMap();  // figure -> what is known of it, once somebody has looked

function chartOf(figure) {
  if (!charts.has(figure)) {
    const svg = figure.querySelector('svg.chart');
    const numbers = name => (svg.dataset[name] || '').split(' ').filter(Boolean).map(Number);
    const [low, high] = numbers('x');
    const names = [...figure.querySelectorAll('.key')].map(key => key.textContent);
    const lines = [...svg.querySelectorAll('polyline')].map((node, index) => ({
      node, name: names[index],
      points: node.getAttribute('points').split(' ').map(pair => pair.split(',').map(Number)),
    }));
    const chart = {
      svg, lines, low, extent: (high - low) || 1, bounds: numbers('y'), marks: numbers('marks'),
      logarithmic: 'log' in svg.dataset, plane: svg.querySelector('.plane'), axes: svg.querySelector('.axes'),
      from: 0, to: (high - low) || 1, top: 0, bottom: PLANE,
    };
    charts.set(figure, chart);
  }
  return charts.get(figure);
}

function valueAt(chart, v) {
  const [low, high] = chart.logarithmic ? chart.bounds.map(Math.log10) : chart.bounds;
  const value = low + (1 - v / PLANE) * (high - low);
  return chart.logarithmic ? 10 ** value : value;
}

function heightOf(chart, value) {
  const [low, high] = chart.logarithmic ? chart.bounds.map(Math.log10) : chart.bounds;
  return (1 - ((chart.logarithmic ? Math.log10(value) : value) - low) / ((high - low) || 1)) * PLANE;
}

function visibleLines(chart) {
  return chart.lines.filter(line => getComputedStyle(line.node).display !== 'none');
}

// Shows the steps between two places, and of the height what the visible lines need there.
function show(chart, from, to) {
  const least = Math.min(chart.extent, 2);
  const width = Math.min(chart.extent, Math.max(least, to - from));
  from = Math.max(0, Math.min(from, chart.extent - width));
  Object.assign(chart, {from, to: from + width, top: 0, bottom: PLANE});
  if (width < chart.extent) {
    let top = Infinity, bottom = -Infinity;
    for (const line of visibleLines(chart)) {
      for (const [u, v] of line.points) {
        if (u >= chart.from && u <= chart.to) { top = Math.min(top, v); bottom = Math.max(bottom, v); }
      }
    }
    const spare = (bottom - top) * 0.05 || 50;
    if (top <= bottom) Object.assign(chart, {top: top - spare, bottom: bottom + spare});
  }
  chart.plane.setAttribute('viewBox', `${chart.from} ${chart.top} ${width} ${chart.bottom - chart.top}`);
  drawAxes(chart);
}

function drawAxes(chart) {
  const parts = [];
  const low = valueAt(chart, chart.bottom), high = valueAt(chart, chart.top);
  for (const value of chart.logarithmic && high / low >= 30 ? powers(low, high) : ticks(low, high, 5)) {
    const y = TOP + (heightOf(chart, value) - chart.top) / (chart.bottom - chart.top) * (BOTTOM - TOP);
    parts.push(element('line', {class: 'grid', x1: LEFT, x2: RIGHT, y1: y, y2: y}));
    const label = shown(value, Math.ceil(Math.log10(Math.abs(high) / (high - low) * 10)));
    parts.push(element('text', {class: 'tick', x: LEFT - 6, y: y + 4, 'text-anchor': 'end'}, label));
  }
  for (const value of ticks(chart.low + chart.from, chart.low + chart.to, 6)) {
    const x = pixelOf(chart, value - chart.low);
    parts.push(element('line', {class: 'grid', x1: x, x2: x, y1: BOTTOM, y2: BOTTOM + 4}));
    parts.push(element('text', {class: 'tick', x, y: BOTTOM + 17, 'text-anchor': 'middle'}, shownStep(value)));
  }
  chart.marks.forEach((mark, index) => {
    const x = pixelOf(chart, mark - chart.low);
    if (x < LEFT || x > RIGHT) return;
    parts.push(element('line', {class: 'restart', x1: x, x2: x, y1: TOP, y2: BOTTOM}));
    if (chart.marks.length <= 6) {
      parts.push(element('text', {class: 'tick', x: x + 4, y: TOP + 10}, `attempt ${index + 2}`));
    }
  });
  chart.axes.replaceChildren(...parts);
}

function pixelOf(chart, u) {
  return LEFT + (u - chart.from) / (chart.to - chart.from) * (RIGHT - LEFT);
}

function placeOf(chart, pixel) {
  return chart.from + (pixel - LEFT) / (RIGHT - LEFT) * (chart.to - chart.from);
}

function ticks(low, high, wanted) {
  const extent = high - low;
  if (!(extent > 0) || !isFinite(extent)) return [low];
  const raw = extent / wanted, scale = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(factor => factor * scale).find(candidate => candidate >= raw) || raw;
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n <= Math.floor(high / step + 1e-9); n++) found.push(n * step);
  return found;
}

function powers(low, high) {
  const found = [], first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  for (let power = first; power <= last; power++) {
    for (const factor of last - first <= 3 ? [1, 2, 5] : [1]) found.push(factor * 10 ** power);
  }
  return found.filter(value => value >= low && value <= high);
}

function shown(value, digits = 4) {
  const size = Math.abs(value);
  if (size < 1e-12) return '0';
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, 'e').replace('e+', 'e');
  return String(Number(value.toPrecision(Math.min(12, Math.max(4, digits)))));
}

function shownStep(value) {
  return Number.isInteger(value) && Math.abs(value) < 1e7 ? value.toLocaleString('en-US') : shown(value, 7);
}

function element(name, attributes, text = '') {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

// What stands below a chart: the values under the pointer, and buttons for those who cannot drag.
function addTools(figure) {
  const below = figure.querySelector('.below');
  const readout = document.createElement('span');
  readout.className = 'readout';
  below.append(readout);
  for (const [zoom, sign, title] of [
    ['out', '−', 'zoom out'], ['in', '+', 'zoom in'], ['left', '◂', 'earlier steps'], ['right', '▸', 'later steps'],
    ['all', 'all', 'all steps'],
  ]) {
    const button = document.createElement('button');
    Object.assign(button, {type: 'button', textContent: sign, title});
    button.setAttribute('aria-label', title);
    button.dataset.zoom = zoom;
    below.append(button);
  }
}

const inView = new IntersectionObserver(entries => {
  for (const entry of entries.filter(entry => entry.isIntersecting)) {
    inView.unobserve(entry.target);
    addTools(entry.target);
  }
}, {rootMargin: '600px'});
for (const figure of document.querySelectorAll('figure.curves')) inView.observe(figure);

// Of a run with many stages, charts are made when somebody opens a stage.
document.addEventListener('toggle', event => {
  const script = event.target.querySelector(':scope > script[type="text/html"]');
  if (!script || !event.target.open) return;
  const made = document.createElement('template');  // what it is given can run nothing
  made.innerHTML = script.textContent;
  for (const figure of made.content.querySelectorAll('figure.curves')) inView.observe(figure);
  script.replaceWith(made.content);
}, true);

function zoom(figure, how) {
  const chart = chartOf(figure), {from, to} = chart, width = to - from;
  const ranges = {
    in: [from + width / 4, to - width / 4], out: [from - width / 2, to + width / 2], all: [0, chart.extent],
    left: [from - width / 2, to - width / 2], right: [from + width / 2, to + width / 2],
  };
  show(chart, ...ranges[how]);
}

// The pixel of the chart's own drawing that an event is at.
function pixelAt(svg, event) {
  const box = svg.getBoundingClientRect();
  return Math.min(RIGHT, Math.max(LEFT, (event.clientX - box.left) * WIDTH / box.width));
}

function readValues(figure, pixel) {
  const chart = chartOf(figure), place = placeOf(chart, pixel);
  const readout = figure.querySelector('.readout');
  let step = null;
  const values = visibleLines(chart).map(line => {
    const [u, v] = nearest(line.points, place);
    step ??= u;
    return `${line.name} ${shown(valueAt(chart, v))}`;
  });
  if (step === null || !readout) return;
  readout.textContent = `step ${shownStep(chart.low + step)}: ${values.join(', ')}`;
  cursor(chart, pixelOf(chart, step), 0);
}

function nearest(points, place) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < place) low = middle + 1; else high = middle;
  }
  const before = points[Math.max(0, low - 1)], after = points[low];
  return place - before[0] < after[0] - place ? before : after;
}

// Marks a place, or a stretch that is being chosen.
function cursor(chart, pixel, width) {
  chart.cursor ??= chart.svg.appendChild(element('rect', {class: 'cursor', y: TOP, height: BOTTOM - TOP}));
  chart.cursor.setAttribute('x', pixel);
  chart.cursor.setAttribute('width', Math.max(1, width));
  chart.cursor.style.display = pixel >= LEFT - 1 && pixel <= RIGHT + 1 ? '' : 'none';
}

let drag = null;  // {figure, svg, pixel} while a stretch is being chosen
document.addEventListener('pointerdown', event => {
  const svg = event.button === 0 && event.target.closest('svg.chart');
  if (svg) drag = {figure: svg.closest('figure'), svg, pixel: pixelAt(svg, event)};
});
document.addEventListener('pointermove', event => {
  const svg = drag ? drag.svg : event.target.closest('svg.chart');
  if (!svg) return;
  const pixel = pixelAt(svg, event);
  if (drag) cursor(chartOf(drag.figure), Math.min(pixel, drag.pixel), Math.abs(pixel - drag.pixel));
  else readValues(svg.closest('figure'), pixel);
});
document.addEventListener('pointerup', event => {
  if (!drag) return;
  const {figure, svg, pixel} = drag, chart = chartOf(figure);
  const [from, to] = [pixel, pixelAt(svg, event)].sort((a, b) => a - b);
  drag = null;
  if (to - from > 6) show(chart, placeOf(chart, from), placeOf(chart, to));
  if (chart.cursor) chart.cursor.style.display = 'none';
});
document.addEventListener('pointercancel', () => { drag = null; });
document.addEventListener('pointerout', event => {
  const svg = !drag && event.target.closest('svg.chart');
  if (!svg || svg.contains(event.relatedTarget)) return;
  const chart = chartOf(svg.closest('figure'));
  if (chart.cursor) chart.cursor.style.display = 'none';
});
document.addEventListener('dblclick', event => {
  const figure = event.target.closest('svg.chart')?.closest('figure');
  if (figure) zoom(figure, 'all');
});

// ---------------------------------------------------------------------------------------------- switches
function showMask(button, on) {
  button.setAttribute('aria-pressed', String(on));
  document.getElementById(button.dataset.mask).style.display = on ? '' : 'none';
}

document.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.zoom) zoom(button.closest('figure'), button.dataset.zoom);
  if (button.dataset.mask) showMask(button, button.getAttribute('aria-pressed') !== 'true');
  if (button.dataset.all) {
    for (const each of button.closest('figure').querySelectorAll('[data-mask]')) {
      showMask(each, button.dataset.all === 'true');
    }
  }
});

document.addEventListener('change', event => {
  const figure = event.target.closest('figure.curves');
  if (event.target.id === 'smooth') {
    document.body.classList.toggle('unsmoothed', !event.target.checked);
  } else if (figure) {
    const boxes = [...figure.querySelectorAll('.key input')], chart = chartOf(figure);
    chart.lines[boxes.indexOf(event.target)].node.style.display = event.target.checked ? '' : 'none';
    show(chart, chart.from, chart.to);
  }
});

// A phrase under the pointer, or in focus, stands out.
for (const [begin, end] of [['pointerover', 'pointerout'], ['focusin', 'focusout']]) {
  for (const kind of [begin, end]) {
    document.addEventListener(kind, event => {
      const button = event.target.closest?.('[data-mask]');
      if (button) document.getElementById(button.dataset.mask).classList.toggle('lit', kind === begin);
    });
  }
}
