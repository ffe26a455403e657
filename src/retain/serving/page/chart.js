// A line chart in as much room as there is, drawn anew when the room changes.

import { el, rounded, svg } from "./dom.js";

const HEIGHT = 240;
const EDGE = { top: 12, right: 16, bottom: 40, left: 60 };
const drawn = new WeakMap(); // place -> what is drawn in it
const watcher = new ResizeObserver((entries) => {
  for (const { target } of entries) if (drawn.has(target)) draw(target, drawn.get(target));
});

/**
 * Draw into `place`. `series`: [{name, points: [[x, y]], dots, tips: [text]}]; `x`, `y`: {name, from, to, format}, where what is left out is taken
 * from the points; `label`: the chart in words; `empty`: what stands there without points.
 */
export function chart(place, what) {
  if (!drawn.has(place)) watcher.observe(place);
  drawn.set(place, what);
  draw(place, what);
}

function draw(place, what) {
  const width = Math.floor(place.clientWidth);
  if (width < 80) return; // not to be seen now
  const points = what.series.flatMap((one) => one.points);
  if (!points.length) return place.replaceChildren(el("p", { class: "muted" }, what.empty));
  const x = scale(what.x, points.map((point) => point[0]), EDGE.left, width - EDGE.right, true);
  const y = scale(what.y, points.map((point) => point[1]), HEIGHT - EDGE.bottom, EDGE.top, false);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": what.label });
  picture.append(...axes(x, y, width, what), ...what.series.flatMap((one, number) => line(one, number + 1, x, y)));
  const legend = what.series.length > 1 ? el("ul", { class: "legend" }, ...what.series.map((one, n) => el("li", { class: `series-${n + 1}` }, one.name))) : "";
  place.replaceChildren(picture, legend);
}

/** From values to pixels, with round values for the ticks. */
function scale({ from, to, format = (value) => rounded(value) }, values, begin, end, wide) {
  const low = from ?? Math.min(...values);
  let high = Math.max(to ?? -Infinity, ...values);
  if (high <= low) high = low + 1;
  const most = Math.max(2, Math.floor(Math.abs(end - begin) / (wide ? 90 : 45)));
  const step = roundStep((high - low) / most, wide);
  if (to === undefined && !wide) high = Math.ceil(high / step - 1e-9) * step;
  const ticks = [];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high + step * 1e-9; place += 1) ticks.push(place * step);
  return { at: (value) => begin + ((value - low) / (high - low)) * (end - begin), ticks, format };
}

/** 1, 2 or 5 times a power of ten, not smaller than `rough`; for whole numbers at least 1. */
function roundStep(rough, whole) {
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
  return whole ? Math.max(1, Math.round(step)) : step;
}

function axes(x, y, width, what) {
  const parts = [];
  for (const value of y.ticks) {
    parts.push(svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y.at(value), y2: y.at(value) }));
    parts.push(svg("text", { class: "tick end", x: EDGE.left - 8, y: y.at(value) + 4 }, y.format(value)));
  }
  for (const value of x.ticks) parts.push(svg("text", { class: "tick middle", x: x.at(value), y: HEIGHT - EDGE.bottom + 18 }, x.format(value)));
  parts.push(svg("text", { class: "tick middle", x: (EDGE.left + width - EDGE.right) / 2, y: HEIGHT - 4 }, what.x.name));
  parts.push(svg("text", { class: "tick middle", transform: `translate(12 ${(EDGE.top + HEIGHT - EDGE.bottom) / 2}) rotate(-90)` }, what.y.name));
  return parts;
}

function line(one, number, x, y) {
  const at = one.points.map(([across, up]) => `${x.at(across).toFixed(1)},${y.at(up).toFixed(1)}`);
  const parts = [svg("polyline", { class: `line series-${number}`, points: at.join(" ") })];
  if (one.dots === false && one.points.length > 1) return parts;
  const dots = one.points.map(([across, up], place) =>
    svg("circle", { class: `dot series-${number}`, cx: x.at(across), cy: y.at(up), r: 4 }, svg("title", {}, one.tips?.[place] ?? `${x.format(across)}: ${y.format(up)}`)),
  );
  return [...parts, ...dots];
}
