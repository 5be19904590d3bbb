"use strict";
// Slices of a CT in three planes with contours over them; nothing is fetched, nothing is kept.
(async () => {
  const byId = (id) => document.getElementById(id);
  const facts = JSON.parse(byId("facts").textContent);
  const [Z, Y, X] = facts.size;
  const [dz, dy, dx] = facts.spacing;
  const organs = facts.organs;

  async function unpacked(id) {
    const text = atob(byId(id).textContent.trim());
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  if (!("DecompressionStream" in window)) {
    byId("trouble").textContent = "This browser is too old to show the page: use one of 2023 or later.";
    return;
  }
  const voxels = await unpacked("voxels");
  const labels = await unpacked("contours");

  // Rows run downwards: from anterior to posterior, or from superior to inferior.
  const planes = {
    axial: { n: Z, h: Y, w: X, mm: [dy, dx], at: (k, r, c) => (k * Y + r) * X + c, ends: "APRL" },
    coronal: { n: Y, h: Z, w: X, mm: [dz, dx], at: (k, r, c) => ((Z - 1 - r) * Y + k) * X + c, ends: "SIRL" },
    sagittal: { n: X, h: Z, w: Y, mm: [dz, dy], at: (k, r, c) => ((Z - 1 - r) * Y + c) * X + k, ends: "SIAP" },
  };

  // The box of the organs with 25 mm about it: what is looked at first.
  const whole = [[0, Z], [0, Y], [0, X]];
  const near = (() => {
    const low = [Z, Y, X], high = [-1, -1, -1];
    for (let i = 0, z = 0; z < Z; z++)
      for (let y = 0; y < Y; y++)
        for (let x = 0; x < X; x++, i++)
          if (labels[i]) {
            const at = [z, y, x];
            for (let a = 0; a < 3; a++) {
              if (at[a] < low[a]) low[a] = at[a];
              if (at[a] > high[a]) high[a] = at[a];
            }
          }
    if (high[0] < 0) return whole;
    return low.map((v, a) => {
      const margin = Math.ceil(25 / facts.spacing[a]);
      return [Math.max(0, v - margin), Math.min(facts.size[a], high[a] + 1 + margin)];
    });
  })();

  function shownPart(name) {
    const [z, y, x] = byId("zoom").checked ? near : whole;
    const up = [Z - z[1], Z - z[0]];
    return { axial: [y, x], coronal: [up, x], sagittal: [up, y] }[name];
  }

  const grey = new Uint8ClampedArray(256);
  function setWindow() {
    const level = Number(byId("level").value), width = Math.max(1, Number(byId("width").value));
    for (let i = 0; i < 256; i++) grey[i] = ((facts.hu[i] - level) / width + 0.5) * 255;
  }

  const visible = (value) => value > 0 && byId("organ-" + (value - 1)).checked;
  const doubtAt = (organ, k) => organ.uncertain.find(([level]) => level === k);
  const slice = (name) => Number(byId("slice-" + name).value);

  function outlines(plane, k, rows, columns, scale) {
    const paths = organs.map(() => new Path2D());
    const used = new Set();
    const value = (r, c) =>
      r < 0 || c < 0 || r >= plane.h || c >= plane.w ? 0 : labels[plane.at(k, r, c)];
    for (let r = rows[0]; r <= rows[1]; r++)
      for (let c = columns[0]; c <= columns[1]; c++) {
        const here = value(r, c), left = value(r, c - 1), above = value(r - 1, c);
        const x = (c - columns[0]) * scale[1], y = (r - rows[0]) * scale[0];
        for (const [other, toX, toY] of [[left, 0, scale[0]], [above, scale[1], 0]])
          if (other !== here)
            for (const v of [here, other])
              if (v) {
                used.add(v);
                paths[v - 1].moveTo(x, y);
                paths[v - 1].lineTo(x + toX, y + toY);
              }
      }
    return [...used].filter(visible).map((v) => [v - 1, paths[v - 1]]);
  }

  function draw(name) {
    const plane = planes[name], k = slice(name), [rows, columns] = shownPart(name);
    const h = rows[1] - rows[0], w = columns[1] - columns[0];
    const pixels = new ImageData(w, h);
    for (let r = 0, o = 0; r < h; r++)
      for (let c = 0; c < w; c++, o += 4) {
        const v = grey[voxels[plane.at(k, r + rows[0], c + columns[0])]];
        pixels.data[o] = pixels.data[o + 1] = pixels.data[o + 2] = v;
        pixels.data[o + 3] = 255;
      }
    const source = new OffscreenCanvas(w, h);
    source.getContext("2d").putImageData(pixels, 0, 0);
    const canvas = byId("view-" + name), sharp = window.devicePixelRatio || 1;
    const wide = canvas.parentElement.clientWidth;
    const high = Math.round((wide * h * plane.mm[0]) / (w * plane.mm[1]));
    canvas.style.height = high + "px";
    canvas.width = Math.round(wide * sharp);
    canvas.height = Math.round(high * sharp);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = true;
    pen.drawImage(source, 0, 0, canvas.width, canvas.height);
    const scale = [canvas.height / h, canvas.width / w];
    const found = [], unsure = [];
    for (const [i, path] of outlines(plane, k, rows, columns, scale)) {
      const doubt = name === "axial" && doubtAt(organs[i], k);
      pen.strokeStyle = organs[i].colour;
      pen.lineWidth = 1.6 * sharp;
      pen.setLineDash(doubt ? [4 * sharp, 3 * sharp] : []);
      pen.stroke(path);
      found.push(organs[i].name);
      if (doubt) unsure.push(`${organs[i].name} (${doubt[1].toFixed(2)})`);
    }
    mark(pen, plane.ends, sharp);
    const where = name === "axial" ? `, z ${facts.z_mm[k].toFixed(1)} mm` : "";
    byId("told-" + name).textContent = `${k + 1} of ${plane.n}${where}`;
    byId("slice-" + name).setAttribute(
      "aria-valuetext",
      `slice ${k + 1} of ${plane.n}${where}: ${found.join(", ") || "no organ"}` +
        (unsure.length ? `; uncertain: ${unsure.join(", ")}` : "")
    );
    if (name === "axial")
      byId("unsure").textContent = unsure.length ? `Uncertain in this slice: ${unsure.join(", ")}` : "";
  }

  function mark(pen, ends, sharp) {
    const { width, height } = pen.canvas;
    pen.setLineDash([]);
    pen.font = `${12 * sharp}px system-ui, sans-serif`;
    pen.fillStyle = "#d8dde2";
    pen.textBaseline = "middle";
    pen.textAlign = "center";
    pen.fillText(ends[0], width / 2, 9 * sharp);
    pen.fillText(ends[1], width / 2, height - 24 * sharp);
    pen.fillText(ends[2], 9 * sharp, height / 2);
    pen.fillText(ends[3], width - 9 * sharp, height / 2);
    pen.fillStyle = "#ffd166";
    pen.fillText("not for clinical use", width / 2, height - 8 * sharp);
  }

  const drawAll = () => Object.keys(planes).forEach(draw);

  function go(at) {
    for (const [name, k] of Object.entries(at)) byId("slice-" + name).value = k;
    drawAll();
  }

  // Click: the other two planes go to that place.
  function place(name, event) {
    const canvas = byId("view-" + name), [rows, columns] = shownPart(name), box = canvas.getBoundingClientRect();
    const r = Math.floor(rows[0] + ((event.clientY - box.top) / box.height) * (rows[1] - rows[0]));
    const c = Math.floor(columns[0] + ((event.clientX - box.left) / box.width) * (columns[1] - columns[0]));
    return [Math.min(Math.max(r, 0), planes[name].h - 1), Math.min(Math.max(c, 0), planes[name].w - 1)];
  }

  for (const name of Object.keys(planes)) {
    const slider = byId("slice-" + name), canvas = byId("view-" + name);
    slider.max = planes[name].n - 1;
    slider.addEventListener("input", () => draw(name));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const step = event.deltaY > 0 ? -1 : 1;
      slider.value = Number(slider.value) + (name === "axial" ? step : -step);
      draw(name);
    }, { passive: false });
    canvas.addEventListener("click", (event) => {
      const [r, c] = place(name, event);
      if (name === "axial") go({ coronal: r, sagittal: c });
      if (name === "coronal") go({ axial: Z - 1 - r, sagittal: c });
      if (name === "sagittal") go({ axial: Z - 1 - r, coronal: c });
    });
    canvas.addEventListener("pointermove", (event) => {
      const [r, c] = place(name, event), i = planes[name].at(slice(name), r, c);
      const organ = labels[i] ? organs[labels[i] - 1].name : "no organ";
      byId("under").textContent = `Under the pointer: ${Math.round(facts.hu[voxels[i]])} HU, ${organ}`;
    });
  }

  // Where the axial slices of shown organs are uncertain, under the slider and by buttons.
  function unsureLevels() {
    const levels = organs.flatMap((o, i) => (byId("organ-" + i).checked ? o.uncertain.map(([k]) => k) : []));
    return [...new Set(levels)].sort((a, b) => a - b);
  }

  function marks() {
    const levels = unsureLevels();
    byId("marks").replaceChildren(...levels.map((k) => {
      const tick = document.createElement("i");
      tick.style.left = (100 * k) / Math.max(1, Z - 1) + "%";
      return tick;
    }));
    for (const id of ["before", "after"]) byId(id).disabled = levels.length === 0;
    byId("count").textContent = levels.length
      ? `${levels.length} uncertain axial ${levels.length === 1 ? "slice" : "slices"}`
      : "no uncertain slice of the organs shown";
  }

  byId("before").addEventListener("click", () => {
    const here = slice("axial"), levels = unsureLevels();
    go({ axial: levels.filter((k) => k < here).pop() ?? levels[levels.length - 1] });
  });
  byId("after").addEventListener("click", () => {
    const here = slice("axial"), levels = unsureLevels();
    go({ axial: levels.find((k) => k > here) ?? levels[0] });
  });

  function centre(i) {
    const sums = [0, 0, 0], k = organs[i].level;
    let n = 0;
    for (let y = 0; y < Y; y++)
      for (let x = 0; x < X; x++)
        if (labels[(k * Y + y) * X + x] === i + 1) (sums[1] += y), (sums[2] += x), n++;
    if (n) go({ axial: k, coronal: Math.round(sums[1] / n), sagittal: Math.round(sums[2] / n) });
  }

  const redraw = () => (marks(), drawAll());
  organs.forEach((organ, i) => {
    byId("organ-" + i).addEventListener("change", redraw);
    byId("to-" + i)?.addEventListener("click", () => centre(i));
  });
  for (const [id, on] of [["all", true], ["none", false]])
    byId(id).addEventListener("click", () => {
      organs.forEach((_, i) => (byId("organ-" + i).checked = on));
      redraw();
    });
  byId("preset").addEventListener("change", (event) => {
    const [level, width] = event.target.value.split(" ");
    if (width) (byId("level").value = level), (byId("width").value = width);
    setWindow();
    drawAll();
  });
  for (const id of ["level", "width"])
    byId(id).addEventListener("input", () => {
      byId("preset").value = "own";
      setWindow();
      drawAll();
    });
  byId("zoom").addEventListener("change", drawAll);
  window.addEventListener("resize", drawAll);

  setWindow();
  marks();
  go({ axial: Z >> 1, coronal: Y >> 1, sagittal: X >> 1 });
  const first = organs.findIndex((o) => o.ml > 0);
  if (first >= 0) centre(first);
  byId("trouble").textContent = "";
  document.body.dataset.ready = "yes";
})();
