// The interactive scatter: axes, colours, legend, selection. Its columns are in #scatter-data.
"use strict";
(() => {
  const MOST_WITHOUT_WEBGL = 4000; // svg has an element for every point
  const FONT = { family: "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif", size: 13, color: "#1d2733" };
  const element = (id) => document.getElementById(id);
  const data = JSON.parse(element("scatter-data").textContent);
  const plot = element("scatter-plot");
  const [xSelect, ySelect, colorSelect, dragSelect] = ["x", "y", "color", "drag"].map((name) => element("scatter-" + name));
  const equal = element("scatter-equal");
  const narrow = window.matchMedia("(max-width: 600px)");
  const thousands = (number) => number.toLocaleString("en-US");
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // -- columns

  function decode(text, type) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new type(bytes.buffer);
  }
  function decoded(column) {
    const type = column.categories ? Int16Array : Float32Array;
    column.numbers = column.numbers || decode(column.values, type);
    return column.numbers;
  }
  const particles = decode(data.particles, Int32Array);
  const clusters = decode(data.clusters, Int32Array);
  for (const color of data.colors) color.hidden = new Set();

  function hasWebGL() {
    const canvas = document.createElement("canvas");
    return Boolean(canvas.getContext("webgl"));
  }
  const webgl = hasWebGL();
  const drawable = webgl ? data.count : Math.min(data.count, MOST_WITHOUT_WEBGL);

  // -- drawing

  let shown = []; // rows of the columns, one for each point
  let selected = new Set(); // rows
  let drawings = 0;
  let drawing = false;

  function rowsToDraw(x, y, color, values) {
    const rows = [];
    for (let row = 0; row < drawable; row++) {
      const visible = color.categories ? !color.hidden.has(values[row]) : isFinite(values[row]);
      if (visible && isFinite(x[row]) && isFinite(y[row])) rows.push(row);
    }
    return rows;
  }

  const shortest = (number) => (Number.isInteger(number) ? String(number) : number.toPrecision(3));

  function hoverText(row, color, values) {
    const value = color.categories ? color.categories[values[row]][0] : shortest(values[row]);
    const own = color === data.colors[0] ? "" : `<br>${escaped(color.name)}: ${escaped(value)}`;
    return `particle ${particles[row]}<br>cluster ${clusters[row]}${own}`;
  }

  // The ends of a scale: one wild value must not take all colours.
  function robustRange(numbers) {
    const sorted = Float32Array.from(numbers).sort();
    const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
    return sorted.length ? [at(0.01), at(0.99)] : [0, 1];
  }

  function markerOf(color, values) {
    const size = Math.min(9, Math.max(3, 200 / Math.sqrt(shown.length || 1)));
    const marker = { size, opacity: shown.length > 5000 ? 0.65 : 0.85, line: { width: 0 } };
    if (color.categories) {
      marker.color = shown.map((row) => color.categories[values[row]][1]);
      return marker;
    }
    marker.color = shown.map((row) => values[row]);
    [marker.cmin, marker.cmax] = robustRange(marker.color);
    marker.colorscale = "Viridis";
    marker.showscale = true;
    marker.colorbar = { title: { text: escaped(color.name), side: narrow.matches ? "top" : "right" }, thickness: 14, outlinewidth: 0 };
    if (narrow.matches) Object.assign(marker.colorbar, { orientation: "h", y: -0.2, yanchor: "top" });
    return marker;
  }

  function layoutOf(xAxis, yAxis) {
    const axis = (name) => ({ title: { text: escaped(name), standoff: 8 }, zeroline: false, gridcolor: "#e8ebee", linecolor: "#8b96a3", showline: true, automargin: true });
    const layout = {
      xaxis: axis(xAxis.name),
      yaxis: axis(yAxis.name),
      font: FONT,
      margin: { l: 50, r: 12, t: 12, b: 45 },
      hovermode: "closest",
      hoverlabel: { bgcolor: "#ffffff", bordercolor: "#55606d", font: FONT, align: "left" },
      dragmode: dragSelect.value || false,
      modebar: { color: "#55606d", activecolor: "#1f3b57", bgcolor: "rgba(255, 255, 255, 0)" },
      showlegend: false,
      selections: [],
      // what is zoomed stays when only the colour changes
      uirevision: `${xSelect.value} ${ySelect.value} ${equal.checked}`,
      selectionrevision: drawings,
    };
    if (equal.checked) Object.assign(layout.yaxis, { scaleanchor: "x", scaleratio: 1 });
    return layout;
  }

  function draw() {
    const [xAxis, yAxis, color] = [data.axes[xSelect.value], data.axes[ySelect.value], data.colors[colorSelect.value]];
    const [x, y, values] = [xAxis, yAxis, color].map(decoded);
    shown = rowsToDraw(x, y, color, values);
    drawings += 1;
    const chosen = shown.map((row, point) => (selected.has(row) ? point : -1)).filter((point) => point >= 0);
    const trace = {
      type: webgl ? "scattergl" : "scatter",
      mode: "markers",
      x: shown.map((row) => x[row]),
      y: shown.map((row) => y[row]),
      text: shown.map((row) => hoverText(row, color, values)),
      hovertemplate: "%{text}<extra></extra>",
      marker: markerOf(color, values),
      unselected: { marker: { opacity: 0.12 } },
      selectedpoints: selected.size ? chosen : null,
    };
    const config = { displaylogo: false, responsive: true, scrollZoom: false, modeBarButtons: [["toImage", "resetScale2d"]] };
    drawing = true; // plotly tells of the outline that goes, and the selection must stay
    Plotly.react(plot, [trace], layoutOf(xAxis, yAxis), config).then(() => { drawing = false; });
    drawLegend(color, values);
    drawNote(color, values, x, y);
  }

  function drawNote(color, values, x, y) {
    const notes = [];
    if (!webgl) notes.push(`This browser has no WebGL: ${thousands(drawable)} of the ${thousands(data.count)} particles are drawn.`);
    let missing = 0;
    for (let row = 0; row < drawable; row++) missing += !(isFinite(x[row]) && isFinite(y[row]) && isFinite(values[row]));
    if (missing) notes.push(`${thousands(missing)} particles without a value are not drawn.`);
    if (!color.categories) notes.push("The colour scale ends at the 1st and 99th percentile.");
    element("scatter-note").textContent = notes.join(" ");
  }

  // -- legend: every category can be hidden

  function drawLegend(color, values) {
    const legend = element("scatter-legend");
    legend.hidden = !color.categories;
    if (!color.categories || legend.dataset.of === colorSelect.value) return;
    legend.dataset.of = colorSelect.value;
    const counts = new Array(color.categories.length).fill(0);
    for (let row = 0; row < drawable; row++) counts[values[row]] += 1;
    const title = document.createElement("legend");
    title.textContent = color.name + " (particles drawn)";
    const list = document.createElement("div");
    color.categories.forEach(([name, tint], code) => list.append(entryOf(color, code, name, tint, counts[code])));
    const all = toggleAll("all", color, list, true);
    const none = toggleAll("none", color, list, false);
    list.prepend(all, none);
    legend.replaceChildren(title, list);
  }

  function entryOf(color, code, name, tint, count) {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: !color.hidden.has(code) });
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = tint;
    const number = document.createElement("small");
    number.textContent = thousands(count);
    box.addEventListener("change", () => {
      if (box.checked) color.hidden.delete(code);
      else color.hidden.add(code);
      draw();
    });
    label.append(box, swatch, name, number);
    return label;
  }

  function toggleAll(name, color, list, visible) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
    button.addEventListener("click", () => {
      color.hidden = new Set(visible ? [] : color.categories.keys());
      for (const box of list.querySelectorAll("input")) box.checked = visible;
      draw();
    });
    return button;
  }

  // -- selection

  function select(rows) {
    selected = new Set(rows);
    const number = selected.size;
    element("selection-count").textContent = number ? `${thousands(number)} particle${number > 1 ? "s" : ""} selected.` : "No particles selected.";
    for (const name of ["clear", "download", "copy"]) element("selection-" + name).disabled = !number;
  }

  const numbersAsText = () => [...selected].map((row) => particles[row]).sort((a, b) => a - b).join("\n") + "\n";

  function download() {
    const address = URL.createObjectURL(new Blob([numbersAsText()], { type: "text/plain" }));
    const link = Object.assign(document.createElement("a"), { href: address, download: "selected_particles.txt" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  async function copy() {
    const count = element("selection-count");
    try {
      await navigator.clipboard.writeText(numbersAsText());
      count.textContent = `${thousands(selected.size)} numbers copied.`;
    } catch {
      count.textContent = "This browser does not let a page copy; download the numbers instead.";
    }
  }

  // -- the controls

  if (window.matchMedia("(pointer: coarse)").matches) dragSelect.value = ""; // a finger scrolls
  for (const control of [xSelect, ySelect, colorSelect, equal]) control.addEventListener("change", draw);
  dragSelect.addEventListener("change", () => Plotly.relayout(plot, { dragmode: dragSelect.value || false }));
  element("scatter-controls").addEventListener("submit", (event) => event.preventDefault());
  element("select-shown").addEventListener("click", () => { select(shown); draw(); });
  element("selection-clear").addEventListener("click", () => { select([]); draw(); });
  element("selection-download").addEventListener("click", download);
  element("selection-copy").addEventListener("click", copy);
  function start() {
    draw();
    plot.on("plotly_selected", (event) => { if (event && !drawing) select(event.points.map((point) => shown[point.pointIndex])); });
    plot.on("plotly_deselect", () => { if (!drawing) select([]); });
  }
  // plotly does not turn a colour bar that is drawn already
  narrow.addEventListener("change", () => { Plotly.purge(plot); start(); });
  start();
})();
