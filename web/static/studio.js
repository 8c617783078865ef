// Charts of the studio: what a page has in data-chart, drawn by uPlot in the colours of the theme.
"use strict";

const DAY = 86400;
const COUNTS = [1, 2, 5].flatMap((step) => [...Array(12)].map((_, power) => step * 10 ** power)).sort((a, b) => a - b);
const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
const DAYS = [1, 2, 7, 14, 28, 56, 91, 182, 365, 730].map((days) => days * DAY);

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function clock(seconds) {
  const pair = (value) => String(value).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds % 60)];
  return hours ? `${hours}:${pair(minutes)}:${pair(rest)}` : `${minutes}:${pair(rest)}`;
}

// Return how the places of the x axis are written: moments of a film, days or hours of a zone.
function written(told) {
  if (told.seconds) return { axis: clock, legend: clock };
  const formats = (options) => {
    const format = new Intl.DateTimeFormat("en-GB", { timeZone: told.tz, ...options });
    return (time) => format.format(new Date(1000 * time));
  };
  const long = told.at.length && told.at.at(-1) - told.at[0] > 300 * DAY;
  const day = { day: "numeric", month: "short", ...(long && { year: "2-digit" }) };
  if (told.byDays) return { axis: formats(day), legend: formats({ dateStyle: "full" }) };
  const hour = { hour: "2-digit", minute: "2-digit" };
  return { axis: formats(hour), legend: formats({ ...day, ...hour }) };
}

function options(told, name, width) {
  const { axis, legend } = written(told);
  const drawn = { stroke: () => colour("--soft"), grid: { stroke: () => colour("--line"), width: 1 }, ticks: { stroke: () => colour("--line"), width: 1 } };
  const near = told.seconds ? 1 : told.byDays ? DAY : 3600;
  const whole = told.series[name].every((value) => value === null || Number.isInteger(value));
  return {
    width,
    height: 220,
    tzDate: (time) => uPlot.tzDate(new Date(1000 * time), told.tz || "UTC"),
    scales: {
      // One point alone stands in the middle of its time.
      x: { time: !told.seconds, range: (_, first, last) => (first === last ? [first - near, last + near] : [first, last]) },
      y: { range: (_, least, most) => [Math.min(0, least ?? 0), Math.max(1, 1.08 * (most ?? 0))] },
    },
    axes: [
      { ...drawn, space: 70, values: (_, splits) => splits.map(axis), ...(told.byDays && { incrs: DAYS }), ...(told.seconds && { incrs: SECONDS }) },
      { ...drawn, size: 60, ...(whole && { incrs: COUNTS }), values: (_, splits) => splits.map((each) => each.toLocaleString("en")) },
    ],
    series: [
      { label: told.seconds ? "At" : "Time", value: (_, time) => (time === null ? "–" : legend(time)) },
      {
        label: told.labels[name],
        stroke: () => colour("--accent"),
        fill: () => `${colour("--accent")}22`,
        width: 2,
        points: { show: told.at.length < 60, size: 6 },
        value: (_, value) => (value === null || value === undefined ? "–" : value.toLocaleString("en", { maximumFractionDigits: 1 })),
      },
    ],
  };
}

function draw(place) {
  const told = JSON.parse(place.dataset.chart);
  const names = Object.keys(told.series);
  let chart;
  const show = (name) => {
    chart?.destroy();
    const series = told.series[name].map((value) => value ?? null);
    chart = new uPlot(options(told, name, place.clientWidth), [told.at, series], place);
    place.dataset.shown = name;
  };
  show(names[0]);
  new ResizeObserver(() => {
    if (place.clientWidth && place.clientWidth !== chart.width) chart.setSize({ width: place.clientWidth, height: 220 });
  }).observe(place);
  // Its colours are those of the page at the moment of drawing.
  const redraw = () => chart.redraw(false, true);
  new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  const choices = place.closest("[data-charted]")?.querySelectorAll("[data-series]:not(:disabled)") ?? [];
  for (const choice of choices) {
    choice.addEventListener("click", () => {
      for (const each of choices) each.setAttribute("aria-pressed", String(each === choice));
      show(choice.dataset.series);
    });
  }
}

for (const place of document.querySelectorAll("[data-chart]")) draw(place);

// Time zones: those that the browser knows, and its own, where another one is shown.
const zone = document.querySelector("[data-zone]");
if (zone) {
  const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
  for (const name of Intl.supportedValuesOf?.("timeZone") ?? []) {
    zone.list.append(new Option(name, name));
  }
  const link = document.querySelector("[data-own-zone]");
  if (own && own !== zone.value) {
    const url = new URL(link.href);
    url.searchParams.set("tz", own);
    link.href = url.href;
    link.textContent = `Show ${own}`;
    link.hidden = false;
  }
}
