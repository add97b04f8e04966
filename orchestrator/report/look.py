"""The style and the script of the report: light and dark, narrow and wide, and readable without the script."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1c2127; --soft: #5a6470; --line: #d9dee4; --link: #0059b3;
  --done: #00734f; --run: #0059b3; --fail: #b3380a; --wait: #5a6470;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0568a; --c4: #8a6d00; --c5: #555555;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --card: #1d2329; --ink: #e8ebee; --soft: #a3adb8; --line: #39424c; --link: #7cc0f5;
    --done: #3ecb98; --run: #7cc0f5; --fail: #ff9b66; --wait: #a3adb8;
    --c0: #56b4e9; --c1: #ff9b42; --c2: #3ecb98; --c3: #e59ac3; --c4: #f0e442; --c5: #bbbbbb;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main, header, nav, footer { max-width: 1160px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 44px 0 10px; scroll-margin-top: 12px; }
h3 { font-size: 1.02rem; margin: 24px 0 8px; overflow-wrap: anywhere; }
p { margin: 8px 0; max-width: 76ch; }
a { color: var(--link); }
nav { padding-top: 10px; font-size: .92rem; display: flex; flex-wrap: wrap; gap: 4px 18px; }
.soft { color: var(--soft); }
.small { font-size: .88rem; }
.headline { font-size: 1.12rem; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px;
  min-width: 150px; }
.tile b { display: block; font-size: 1.6rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.badge { border: 1px solid currentColor; border-radius: 99px; padding: 1px 10px; font-size: .85rem; font-weight: 600;
  white-space: nowrap; }
.badge.done, .badge.reused, .passed { color: var(--done); }
.badge.running, .badge.queued { color: var(--run); }
.badge.failed, .badge.cancelled, .missed { color: var(--fail); }
.badge.waiting { color: var(--wait); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.bars { min-width: 90px; width: 32%; padding-top: 12px; }
.bar { height: 7px; margin: 1px 0; border-radius: 2px; background: var(--c0); min-width: 1px; }
.bar.before { background: none; border: 1px solid var(--soft); }
code, pre { font: .86rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; overflow-x: auto;
  overflow-wrap: normal; }
figure { margin: 0; }
.picture { margin: 0 0 18px; }
.picture img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 8px; background: #fff;
  display: block; }
.picture .wide img { min-width: 640px; }
figcaption { color: var(--soft); font-size: .86rem; margin: 4px 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 22px; }
.key { display: inline-flex; align-items: center; gap: 6px; margin-right: 14px; }
svg.chain { display: block; margin: 0 auto; }
svg.chart { width: 100%; height: auto; display: block; touch-action: pan-y; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .tick, svg .name { fill: var(--soft); font-size: 11.5px; }
.grid { stroke: var(--line); stroke-width: 1; }
.axis { stroke: var(--soft); stroke-width: 1; }
.restart { stroke: var(--fail); stroke-width: 1; stroke-dasharray: 3 3; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.curve.dot { stroke: none; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); stroke-dasharray: 7 3; }
.c2 { stroke: var(--c2); stroke-dasharray: 2 3; }
.c3 { stroke: var(--c3); stroke-dasharray: 9 3 2 3; } .c4 { stroke: var(--c4); stroke-dasharray: 4 2; }
.c5 { stroke: var(--c5); }
.curve.faint { stroke: var(--soft); stroke-width: 1; stroke-dasharray: none; opacity: .45; }
.dot { fill: var(--c0); }
.cursor { stroke: var(--soft); stroke-width: 1; pointer-events: none; }
.readout { min-height: 1.5em; color: var(--soft); font-size: .86rem; font-variant-numeric: tabular-nums; }
.node rect { fill: var(--card); stroke: var(--line); stroke-width: 1.5; }
.node .title { font-weight: 600; font-size: 13px; } .node .kind { fill: var(--soft); font-size: 11px; }
.node.done rect, .node.reused rect { stroke: var(--done); }
.node.done .symbol, .node.reused .symbol { fill: var(--done); }
.node.running rect { stroke: var(--run); stroke-width: 2.5; } .node.running .symbol { fill: var(--run); }
.node.failed rect, .node.cancelled rect { stroke: var(--fail); stroke-width: 2.5; stroke-dasharray: 5 3; }
.node.failed .symbol, .node.cancelled .symbol { fill: var(--fail); }
.node.waiting rect, .node.queued rect { stroke-dasharray: 3 3; }
.edge { fill: none; stroke: var(--soft); stroke-width: 1.3; } .head { fill: var(--soft); }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--link); }
footer { padding: 36px 20px 40px; color: var(--soft); font-size: .86rem; }
@media print { nav { display: none; } details { display: block; } }
"""

# shows the values below the pointer; the page is complete without it
SCRIPT = """
'use strict';
for (const svg of document.querySelectorAll('svg.chain')) {
  const frame = svg.parentElement;
  frame.scrollLeft = (frame.scrollWidth - frame.clientWidth) / 2;
}
for (const svg of document.querySelectorAll('svg.chart')) {
  const [L, R, T, B] = svg.dataset.plane.split(' ').map(Number);
  const curves = [...svg.querySelectorAll('[data-points]')].map(node => ({
    name: node.dataset.name,
    points: node.dataset.points.split(' ').map(pair => pair.split(',').map(Number)),
  }));
  const xs = curves.flatMap(curve => curve.points.map(point => point[0]));
  const low = Math.min(...xs), high = Math.max(...xs);
  const readout = document.createElement('div');
  readout.className = 'readout';
  svg.after(readout);
  const cursor = document.createElementNS('http://www.w3.org/2000/svg', 'line');
  cursor.setAttribute('class', 'cursor');
  cursor.setAttribute('y1', T); cursor.setAttribute('y2', B);
  cursor.style.display = 'none';
  svg.append(cursor);
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect();
    const pixel = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const x = low + (pixel - L) / (R - L) * (high - low);
    if (!(pixel >= L - 4 && pixel <= R + 4)) return;
    let step = x;
    const values = curves.map(curve => {
      const near = curve.points.reduce((best, p) => Math.abs(p[0] - x) < Math.abs(best[0] - x) ? p : best);
      step = near[0];
      return curve.name + ' ' + Number(near[1].toPrecision(4));
    });
    const at = L + (step - low) / ((high - low) || 1) * (R - L);
    cursor.setAttribute('x1', at); cursor.setAttribute('x2', at);
    cursor.style.display = '';
    readout.textContent = 'step ' + step + ': ' + values.join(', ');
  });
  svg.addEventListener('pointerleave', () => { cursor.style.display = 'none'; readout.textContent = ''; });
}
"""
