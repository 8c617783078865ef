// Now: the last five minutes of three figures, as long as the page is open.
"use strict";

const KEPT = 150;
const WIDTH = 300;
const HEIGHT = 60;
const seen = { rate: [], p99: [], lag: [] };

function draw(name, values) {
  const chart = document.querySelector(`[data-trend="${name}"]`);
  const most = Math.max(...values, Number.MIN_VALUE);
  const points = values.map((value, at) => {
    const x = WIDTH - (values.length - 1 - at) * (WIDTH / (KEPT - 1));
    return `${x.toFixed(1)},${(HEIGHT - 4 - (value / most) * (HEIGHT - 12)).toFixed(1)}`;
  });
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points.join(" "));
  const area = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
  const first = points[0].split(",")[0];
  area.setAttribute("points", `${first},${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}`);
  chart.replaceChildren(area, line);
}

function take() {
  const told = JSON.parse(document.querySelector("[data-now]").dataset.now);
  for (const [name, values] of Object.entries(seen)) {
    if (typeof told[name] !== "number") continue;
    values.push(told[name]);
    if (values.length > KEPT) values.shift();
    draw(name, values);
  }
}

take();
document.addEventListener("htmx:afterSettle", (event) => {
  if (event.detail.target.id === "now") take();
});
