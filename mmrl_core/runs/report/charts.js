"use strict";
// Charts: one x axis for all, drawn by uPlot when they come into view. Every text from the run is set as text.
const report = JSON.parse(document.getElementById("report-data").textContent);
const isPhone = matchMedia("(max-width: 820px)");
const isDark = matchMedia("(prefers-color-scheme: dark)");
const plots = new Map(); // element -> its uPlot

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// As `format_number` of the page has it.
function shownNumber(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  let text;
  if (Number.isInteger(value) && size < 1e7) text = value.toLocaleString("en");
  else if (size >= 1e7 || (size > 0 && size < 1e-3)) text = value.toExponential(1);
  else {
    const digits = size < 100 ? 3 : size < 1000 ? 1 : 0;
    text = value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  }
  return text.replace("-", "−");
}

// From the first to the last step of anything, with a little room.
const stepRange = (() => {
  let low = Infinity, high = -Infinity;
  for (const curves of Object.values(report.charts))
    for (const curve of curves) {
      low = Math.min(low, curve.x[0]);
      high = Math.max(high, curve.x[curve.x.length - 1]);
    }
  const room = 0.015 * (high - low) || 1;
  return [low - room, high + room];
})();

function valueRange(plot, low, high) {
  if (low === null || high === null || !Number.isFinite(low) || !Number.isFinite(high)) return [0, 1];
  const room = 0.08 * (high - low) || 0.08 * Math.abs(high) || 1;
  return [low >= 0 && low <= high / 2 ? 0 : low - room, high + room];
}

function tickTexts(plot, ticks, axis, space, step) {
  let digits = 0; // as many as the step has
  while (digits < 6 && Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6) digits++;
  return ticks.map((tick) => {
    if (tick === null) return "";
    const size = Math.abs(tick);
    if (size >= 1e6 || (size > 0 && step < 1e-4)) return tick.toExponential(1).replace("-", "−");
    return tick.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }).replace("-", "−");
  });
}

// Stages: a line where one ends, its name where there is room.
function markStages(plot) {
  if (report.stages.length < 2) return;
  const { ctx, bbox } = plot, ratio = devicePixelRatio, { min, max } = plot.scales.x;
  ctx.save();
  ctx.font = `${11 * ratio}px system-ui, sans-serif`;
  ctx.fillStyle = colour("soft");
  ctx.strokeStyle = colour("strong-line");
  ctx.lineWidth = ratio;
  ctx.setLineDash([3 * ratio, 3 * ratio]);
  ctx.textAlign = "center";
  let start = Math.max(min, -Infinity);
  report.stages.forEach(([name, , last], place) => {
    const end = place === report.stages.length - 1 ? max : Math.min(last, max);
    if (end <= start) return;
    const left = plot.valToPos(start, "x", true), right = plot.valToPos(end, "x", true);
    if (place && start > min) {
      ctx.beginPath();
      ctx.moveTo(left, bbox.top);
      ctx.lineTo(left, bbox.top + bbox.height);
      ctx.stroke();
    }
    if (ctx.measureText(name).width < right - left) ctx.fillText(name, (left + right) / 2, bbox.top - 5 * ratio);
    start = end;
  });
  ctx.restore();
}

function seriesOf(curves) {
  const series = [{}], bands = [], tables = [], readings = [];
  const runs = new Set(curves.map((curve) => curve.run)).size;
  curves.forEach((curve, place) => {
    const stroke = () => colour(`c${place % 7}`);
    const dash = runs > 1 && curve.run ? [6, 3] : undefined;
    const few = curve.x.length < 3 || curve.measured;
    const columns = [curve.x, curve.y];
    series.push({
      stroke, dash, width: curve.smooth ? 1 : 1.8, alpha: curve.smooth ? 0.32 : 1, spanGaps: curve.measured,
      points: { show: few, size: 7, stroke, fill: () => colour("card") },
    });
    readings.push(series.length - 1);
    if (curve.smooth) {
      columns.push(curve.smooth);
      series.push({ stroke, dash, width: 2, points: { show: false } });
    }
    if (curve.low) {
      columns.push(curve.high, curve.low);
      const edge = { stroke: "transparent", spanGaps: true, points: { show: false } };
      series.push(edge, { ...edge });
      bands.push({ series: [series.length - 2, series.length - 1], fill: () => `${colour(`c${place % 7}`)}28` });
    }
    tables.push(columns);
  });
  return { series, bands, data: uPlot.join(tables), readings };
}

// The nearest number of a column at or before a place: columns of different steps stand in one table.
function readingAt(column, place) {
  for (let at = place; at >= 0 && at > place - 12; at--) if (column[at] !== null && column[at] !== undefined) return at;
  return null;
}

function drawChart(element) {
  const curves = report.charts[element.dataset.chart];
  if (!curves || plots.has(element) || !element.clientWidth) return;
  const { series, bands, data, readings } = seriesOf(curves);
  const legend = element.parentElement.querySelector(".legend");
  const values = [...legend.querySelectorAll("b")], last = values.map((value) => value.textContent);
  const atStep = legend.querySelector(".at");
  const font = "11px system-ui, sans-serif", line = () => colour("soft"), grid = { stroke: () => colour("grid"), width: 1 };
  const ticks = { show: false };
  const plot = new uPlot({
    width: element.clientWidth, height: element.clientHeight, series, bands,
    padding: [report.stages.length > 1 ? 16 : 8, 8, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: "steps" }, drag: { x: true, y: false, setScale: false }, points: { size: 7 }, y: false },
    scales: { x: { time: false, range: () => stepRange }, y: { range: valueRange } },
    axes: [
      { font, stroke: line, grid: { show: false }, ticks, size: 26, gap: 6, space: 55, incrs: [1, 2, 5, 10, 20, 25, 50, 100, 200, 250, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6, 1e7] },
      { font, stroke: line, grid, ticks, gap: 5, space: 32, values: tickTexts, size: (u, texts) => 12 + 6.4 * Math.max(5, ...(texts || []).map((text) => text.length)) },
    ],
    hooks: {
      drawAxes: [markStages],
      setCursor: [(u) => {
        const place = u.cursor.idx;
        let step = null;
        readings.forEach((index, curve) => {
          const at = place === null || place === undefined ? null : readingAt(u.data[index], place);
          if (at !== null) step = Math.max(step ?? -Infinity, u.data[0][at]);
          values[curve].textContent = at === null ? last[curve] : shownNumber(u.data[index][at]);
        });
        atStep.textContent = step === null ? "last" : `step ${Math.round(step).toLocaleString("en")}`;
      }],
      setSelect: [(u) => {
        if (u.select.width < 4) return;
        zoom(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"));
      }],
    },
  }, data, element);
  plot.over.addEventListener("dblclick", () => zoom(...stepRange));
  plots.set(element, plot);
}

// All charts share the x axis, also when a part of it is chosen.
function zoom(min, max) {
  for (const plot of plots.values()) {
    plot.setScale("x", { min, max });
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
  }
}

const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) drawChart(entry.target);
}, { rootMargin: "400px" });
const sized = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const plot = plots.get(target);
    if (plot && target.clientWidth && target.clientWidth !== plot.width) plot.setSize({ width: target.clientWidth, height: target.clientHeight });
  }
});
const chartElements = document.querySelectorAll(".plot");
for (const element of chartElements) {
  inView.observe(element);
  sized.observe(element);
}
isDark.addEventListener("change", () => {
  for (const plot of plots.values()) plot.redraw(false);
});
addEventListener("beforeprint", () => chartElements.forEach(drawChart));
