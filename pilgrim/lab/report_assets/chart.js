// A line chart in SVG, for numbers that belong to the steps of several stages.
//
// The x axis is the journey: the stages stand side by side, each with its own step count, each as wide
// as its share of all steps but never narrower than a seventh. A position on it is `u`, from 0 to 1.
// All charts show the same part [low, high] of it and share one cursor, so that a spike in one can be
// looked up in the others. SVG (not canvas) because it prints sharply and takes its colours from the
// style sheet: changing the theme redraws nothing.
"use strict";

const NARROWEST = 1 / 7;
const GAP = 0.014; // between two stages, in u
const EDGE = { left: 52, right: 12, top: 12, bottom: 28 }; // around the plot, in pixels

function svg(tag, attributes, parent, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// Index of the number in the sorted list that lies nearest to `target`.
function nearest(sorted, target) {
  let low = 0, high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < target) low = middle;
    else high = middle;
  }
  return target - sorted[low] <= sorted[high] - target ? low : high;
}

// The stages as stretches of the x axis.
function layOut(stages) {
  const spans = stages.map((stage) => Math.max(stage.last - stage.first, 1));
  const total = spans.reduce((sum, span) => sum + span, 0);
  const shares = spans.map((span) => Math.max(span / total, stages.length > 1 ? NARROWEST : 1));
  const scale = (1 - GAP * (stages.length - 1)) / shares.reduce((sum, share) => sum + share, 0);
  let from = 0;
  return stages.map((stage, index) => {
    const to = from + shares[index] * scale;
    const stretch = { ...stage, span: spans[index], from, to };
    from = to + GAP;
    return stretch;
  });
}

const toU = (stretch, step) => stretch.from + ((step - stretch.first) / stretch.span) * (stretch.to - stretch.from);
const toStep = (stretch, u) => stretch.first + ((u - stretch.from) / (stretch.to - stretch.from)) * stretch.span;

// 1, 2 or 5 times a power of ten, at least `atLeast`.
function niceStep(atLeast) {
  const power = 10 ** Math.floor(Math.log10(atLeast));
  return [1, 2, 5, 10].find((factor) => factor * power >= atLeast * 0.999) * power;
}

function linearTicks(low, high, count) {
  const step = niceStep((high - low) / count);
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) ticks.push(n * step);
  return ticks;
}

// On a logarithmic axis: as many of the mantissas as there is room for.
function logTicks(low, high, count) {
  let ticks = [];
  for (const mantissas of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 6, 8]]) {
    const finer = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const mantissa of mantissas) finer.push(mantissa * 10 ** power);
    const inside = finer.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
    if (inside.length > count + 2 && ticks.length > 1) break;
    ticks = inside;
  }
  return ticks.length > 1 ? ticks : linearTicks(low, high, count);
}

function trimmed(text) {
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

// A number for an axis: 0.02, 1.5, 12k, 3e-5.
function axisLabel(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6) return trimmed((value / 1e6).toPrecision(4)) + "M";
  if (size >= 1e4) return trimmed((value / 1e3).toPrecision(4)) + "k";
  if (size < 1e-3) return trimmed(value.toExponential(1).split("e")[0]) + "e" + Math.floor(Math.log10(size * 1.0001));
  return trimmed(value.toPrecision(4));
}

// A number to be read: four digits that count, thousands with commas.
function reading(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return value.toPrecision(4);
}

// A point of a curve: a circle, or a square of about the same size.
function drawMark(mark, { cx, cy, ...rest }, parent) {
  if (mark === "square") svg("rect", { ...rest, x: (cx - 2.9).toFixed(1), y: (cy - 2.9).toFixed(1), width: 5.8, height: 5.8 }, parent);
  else svg("circle", { ...rest, cx: cx.toFixed(1), cy: cy.toFixed(1), r: 3.2 }, parent);
}

class Chart {
  constructor(figure, spec, stretches, shared) {
    Object.assign(this, { figure, spec, stretches, shared });
    this.plot = figure.querySelector(".plot");
    this.log = false;
    this.hidden = new Set();
    this.buildLegend();
    const scale = figure.querySelector(".scale");
    if (scale)
      scale.addEventListener("click", () => {
        this.log = !this.log;
        scale.setAttribute("aria-pressed", this.log);
        this.draw();
      });
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  // One entry a label: a swatch, the name and the value at the cursor; a button where there is a choice.
  buildLegend() {
    const legend = this.figure.querySelector(".legend");
    this.place = document.createElement("output");
    legend.append(this.place);
    this.values = new Map();
    const labels = [...new Set(this.spec.series.map((series) => series.label))];
    for (const label of labels) {
      const entry = document.createElement(labels.length > 1 ? "button" : "span");
      const { kind, mark } = this.spec.series.find((series) => series.label === label);
      const swatch = svg("svg", { class: `swatch ${kind}`, width: 22, height: 10, "aria-hidden": true }, entry);
      if (kind === "points" || kind === "dots") drawMark(mark, { cx: 11, cy: 5 }, swatch);
      else svg("path", { d: kind === "raw" ? "M1 5l3-3 3 5 3-6 3 7 3-5 3 4 2-2" : "M1 5h20" }, swatch);
      entry.append(label, " ");
      const value = document.createElement("b");
      entry.append(value);
      this.values.set(label, value);
      if (labels.length > 1) {
        entry.type = "button";
        entry.setAttribute("aria-pressed", "true");
        entry.addEventListener("click", () => {
          if (!this.hidden.delete(label)) this.hidden.add(label);
          entry.setAttribute("aria-pressed", !this.hidden.has(label));
          this.draw();
        });
      }
      legend.append(entry);
    }
    if (!labels.length) legend.append("– nothing measured yet");
  }

  shown() {
    return this.spec.series.filter((series) => !this.hidden.has(series.label));
  }

  // Lowest and highest value of the part in view, with some air; from zero where that is the meaning.
  range() {
    const { low, high } = this.shared.view;
    let bottom = Infinity, top = -Infinity;
    for (const series of this.shown()) {
      const stretch = this.stretches[series.stage];
      for (let i = 0; i < series.x.length; i++) {
        const u = toU(stretch, series.x[i]), y = series.y[i];
        if (u < low - 1e-9 || u > high + 1e-9 || (this.log && y <= 0)) continue;
        bottom = Math.min(bottom, series.low ? series.low[i] : y);
        top = Math.max(top, series.high ? series.high[i] : y);
      }
    }
    if (bottom > top) return null;
    if (this.spec.chance !== undefined) [bottom, top] = [Math.min(bottom, this.spec.chance), Math.max(top, this.spec.chance)];
    if (this.log) return bottom === top ? [bottom / 2, top * 2] : [bottom * 0.97, top * 1.03];
    if (this.spec.fromZero) bottom = Math.min(0, bottom);
    const air = 0.06 * (top - bottom) || Math.abs(top) * 0.1 || 1;
    return [this.spec.fromZero && bottom === 0 ? 0 : bottom - air, top + air];
  }

  draw() {
    const width = this.plot.clientWidth, height = this.plot.clientHeight;
    if (!width || !height) return;
    this.plot.replaceChildren();
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": true }, this.plot);
    const { low, high } = this.shared.view;
    this.inner = width - EDGE.left - EDGE.right;
    const floor = height - EDGE.bottom;
    const range = this.range();
    this.toX = (u) => EDGE.left + ((u - low) / (high - low)) * this.inner;
    this.toViewU = (x) => low + ((x - EDGE.left) / this.inner) * (high - low);
    const scaled = this.log ? Math.log : (y) => y;
    if (range) {
      const [bottom, top] = range.map(scaled);
      this.toY = (y) => floor - ((scaled(y) - bottom) / (top - bottom)) * (floor - EDGE.top);
    } else this.toY = null;

    const count = Math.max(2, Math.round(height / 56));
    if (range)
      for (const tick of (this.log ? logTicks : linearTicks)(...range, count)) {
        const y = this.toY(tick);
        if (y < EDGE.top - 1 || y > floor + 1) continue;
        svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y, y2: y }, root);
        svg("text", { class: "tick", x: EDGE.left - 8, y: y + 4, "text-anchor": "end" }, root, axisLabel(tick));
      }
    this.drawStages(root, width, floor);
    if (range) this.drawSeries(root, floor);
    this.layer = svg("g", {}, root);
    this.drawCursor();
  }

  // The x axis: under each stage a line in its colour and its own steps.
  drawStages(root, width, floor) {
    let free = 0; // x from which the next label finds room
    for (const stretch of this.stretches) {
      const left = Math.max(this.toX(stretch.from), EDGE.left), right = Math.min(this.toX(stretch.to), width - EDGE.right);
      if (right - left < 1) continue;
      const group = svg("g", { "data-stage": stretch.name }, root);
      svg("line", { class: "axis", x1: left, x2: right, y1: floor, y2: floor }, group);
      for (const step of stretch.resumed) {
        const x = this.toX(toU(stretch, step));
        if (x < left - 1 || x > right + 1) continue;
        const mark = svg("path", { class: "resumed", d: `M${x} ${floor - 1}l-4 -7h8z` }, group);
        svg("title", {}, mark, `resumed at step ${step.toLocaleString("en")}`);
      }
      for (const { step, text } of stretch.faults) {
        const x = this.toX(toU(stretch, step));
        if (x < left - 1 || x > right + 1) continue;
        const mark = svg("g", { class: "fault" }, group);
        svg("line", { x1: x, x2: x, y1: EDGE.top, y2: floor }, mark);
        svg("path", { d: `M${x} ${EDGE.top}l-4 -7h8z` }, mark);
        svg("title", {}, mark, text);
      }
      const from = toStep(stretch, this.toViewU(left)), to = toStep(stretch, this.toViewU(right));
      const ticks = linearTicks(from, to, Math.max(1, (right - left) / 56)).filter(Number.isInteger);
      for (const step of ticks) {
        const label = axisLabel(step), half = label.length * 3.7, x = clamp(this.toX(toU(stretch, step)), 0, width - half);
        if (x - half < free) continue;
        svg("text", { class: "tick", x, y: floor + 19, "text-anchor": "middle" }, group, label);
        free = x + half + 10;
      }
    }
  }

  drawSeries(root, floor) {
    const clip = `clip-${this.spec.id}`;
    const frame = { x: EDGE.left - 5, y: EDGE.top - 6, width: this.inner + 10, height: floor - EDGE.top + 6 };
    svg("rect", frame, svg("clipPath", { id: clip }, root));
    const group = svg("g", { "clip-path": `url(#${clip})` }, root);
    const { low, high } = this.shared.view;
    for (const series of this.shown().filter((each) => each.low)) this.drawBand(series, group);
    if (this.spec.chance !== undefined) {
      const y = this.toY(this.spec.chance), right = EDGE.left + this.inner;
      svg("line", { class: "chance", x1: EDGE.left, x2: right, y1: y, y2: y }, group);
      svg("text", { class: "tick over", x: right, y: y - 4, "text-anchor": "end" }, group, "chance");
    }
    for (const kind of ["raw", "line", "points", "dots"])
      for (const series of this.shown().filter((each) => each.kind === kind)) {
        const stretch = this.stretches[series.stage];
        if (stretch.to < low || stretch.from > high) continue;
        const at = series.x.map((step, i) => [this.toX(toU(stretch, step)), this.log && series.y[i] <= 0 ? null : this.toY(series.y[i])]);
        const seen = at.filter(([, y]) => y !== null);
        const d = seen.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
        if (kind !== "dots") svg("path", { class: `series ${kind}`, "data-stage": stretch.name, d }, group);
        const few = seen.filter(([x]) => x > EDGE.left - 6 && x < EDGE.left + this.inner + 6).length < this.inner / 9;
        if (kind === "dots" || (kind === "points" && few) || seen.length === 1)
          for (const [x, y] of seen) drawMark(series.mark, { class: "point", "data-stage": stretch.name, cx: x, cy: y }, group);
      }
  }

  // The interval of each point, as an area from point to point; of a single point, a stroke.
  drawBand(series, group) {
    const stretch = this.stretches[series.stage];
    const edge = (values) => values.map((y, i) => `${this.toX(toU(stretch, series.x[i])).toFixed(1)} ${this.toY(y).toFixed(1)}`);
    const d = `M${[...edge(series.low), ...edge(series.high).reverse()].join("L")}z`;
    svg("path", { class: series.x.length > 1 ? "interval" : "interval single", "data-stage": stretch.name, d }, group);
  }

  // The cursor's line, a dot on each curve, and the values in the legend; without a cursor, the last values.
  drawCursor() {
    if (!this.layer) return;
    this.layer.replaceChildren();
    const { low, high } = this.shared.view;
    const cursor = this.shared.cursor;
    const u = cursor ?? high;
    let stretch = this.stretches[0];
    for (const each of this.stretches) if (u >= each.from - GAP / 2) stretch = each;
    const step = clamp(Math.round(toStep(stretch, u)), stretch.first, stretch.last);
    this.place.textContent = this.values.size ? `${stretch.name} ${step.toLocaleString("en")}` : "";
    this.place.dataset.stage = stretch.name;
    const x = this.toX(toU(stretch, step));
    if (cursor !== null && cursor >= low && cursor <= high) {
      const bottom = this.plot.clientHeight - EDGE.bottom;
      svg("line", { class: "cursor", x1: x, x2: x, y1: EDGE.top - 4, y2: bottom }, this.layer);
    }
    for (const [label, element] of this.values) {
      const series = this.spec.series.find((each) => each.label === label && this.stretches[each.stage] === stretch);
      if (!series || this.hidden.has(label)) {
        element.textContent = this.hidden.has(label) ? "" : "–";
        continue;
      }
      const index = nearest(series.x, step);
      const away = (series.kind === "points" || series.kind === "dots") && series.x[index] !== step;
      element.textContent = reading(series.y[index]) + (away ? ` at ${series.x[index].toLocaleString("en")}` : "");
      if (cursor !== null && series.kind !== "raw" && this.toY && !(this.log && series.y[index] <= 0)) {
        const dot = { class: "dot", "data-stage": stretch.name, cx: this.toX(toU(stretch, series.x[index])), cy: this.toY(series.y[index]), r: 4.5 };
        if (dot.cx >= EDGE.left - 1 && dot.cx <= EDGE.left + this.inner + 1) svg("circle", dot, this.layer);
      }
    }
  }

  // Mouse: hover reads, drag zooms, double click shows all. Touch: slide to read. Keys: see the page.
  listen() {
    const position = (event) => event.clientX - this.plot.getBoundingClientRect().left;
    const pointAt = (x) => this.shared.point(clamp(this.toViewU(x), this.shared.view.low, this.shared.view.high));
    let start = null, band = null;
    this.plot.addEventListener("pointerdown", (event) => {
      if (!this.layer) return;
      pointAt(position(event));
      if (event.pointerType !== "mouse" || event.button !== 0) return;
      start = position(event);
      this.plot.setPointerCapture(event.pointerId);
    });
    this.plot.addEventListener("pointermove", (event) => {
      if (!this.layer) return;
      const x = position(event);
      pointAt(x);
      if (start === null) return;
      if (!band) band = svg("rect", { class: "band", y: EDGE.top, height: this.plot.clientHeight - EDGE.top - EDGE.bottom }, this.plot.firstChild);
      band.setAttribute("x", Math.min(start, x));
      band.setAttribute("width", Math.abs(x - start));
    });
    this.plot.addEventListener("pointerup", (event) => {
      const from = start, to = position(event);
      start = null;
      if (band) band.remove();
      band = null;
      if (from !== null && Math.abs(to - from) > 6)
        this.shared.show(this.toViewU(Math.min(from, to)), this.toViewU(Math.max(from, to)));
    });
    this.plot.addEventListener("pointercancel", () => { start = null; if (band) band.remove(); band = null; });
    this.plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") this.shared.point(null); });
    this.plot.addEventListener("dblclick", () => this.shared.show(0, 1));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("blur", () => this.shared.point(null));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { low, high } = this.shared.view;
    const hop = (high - low) / (event.shiftKey ? 12 : 120);
    const cursor = this.shared.cursor ?? (low + high) / 2;
    const acts = {
      ArrowLeft: () => this.shared.point(clamp(cursor - hop, low, high)),
      ArrowRight: () => this.shared.point(clamp(cursor + hop, low, high)),
      Home: () => this.shared.point(low),
      End: () => this.shared.point(high),
      "+": () => this.shared.zoom(0.5),
      "=": () => this.shared.zoom(0.5),
      "-": () => this.shared.zoom(2),
      "0": () => this.shared.show(0, 1),
      Escape: () => this.shared.show(0, 1),
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    acts[event.key]();
  }
}
