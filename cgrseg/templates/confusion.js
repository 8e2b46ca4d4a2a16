// The confusion matrix on a canvas: zoom, move, and names and counts under the pointer.
(() => {
  const canvas = document.getElementById("confusion-view");
  if (!canvas || !DATA.confusion) return;
  const { classes, matrix } = DATA.confusion;
  const count = classes.length;
  const rowSums = matrix.map((row) => row.reduce((a, b) => a + b, 0));
  const columnSums = classes.map((_, j) => matrix.reduce((sum, row) => sum + row[j], 0));
  const paint = canvas.getContext("2d");
  let mode = "row", diagonal = true, zoom = 1, originX = 0, originY = 0, hovered = null, layout = null;

  const share = {
    row: (i, j) => rowSums[i] ? matrix[i][j] / rowSums[i] : 0,
    column: (i, j) => columnSums[j] ? matrix[i][j] / columnSums[j] : 0,
    pixels: (i, j) => matrix[i][j] ? Math.log1p(matrix[i][j]) : 0,
  };
  const variable = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  function rgb(hex) { return [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)); }
  function mix(from, to, t) { return from.map((c, k) => Math.round(c + (to[k] - c) * t)); }

  function measure() {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    paint.font = "12px system-ui, sans-serif";
    const longest = Math.max(...classes.map((name) => paint.measureText(name).width));
    const gutter = Math.min(160, Math.ceil(longest * 1.09) + 34);
    const side = Math.max(120, Math.min(width - gutter - 12, count > 14 ? 900 : 62 * count, 900));
    const height = gutter + side + 12;
    canvas.style.height = height + "px";
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    layout = { ratio, width, height, gutter, side, left: gutter, top: gutter };
  }

  function draw() {
    if (!layout) measure();
    const { ratio, width, height, side, left, top } = layout;
    const cell = side * zoom / count;
    originX = Math.min(Math.max(originX, 0), count - count / zoom);
    originY = Math.min(Math.max(originY, 0), count - count / zoom);
    const [ink, faint, rule] = [variable("--ink"), variable("--faint"), variable("--rule")];
    const paper = rgb(variable("--panel")), accent = rgb(variable("--accent"));
    const strong = isDark() ? [214, 232, 255] : [10, 40, 86];
    let most = 0;
    for (let i = 0; i < count; i++) {
      for (let j = 0; j < count; j++) if (diagonal || i !== j) most = Math.max(most, share[mode](i, j));
    }
    paint.setTransform(ratio, 0, 0, ratio, 0, 0);
    paint.clearRect(0, 0, width, height);
    paint.save();
    paint.beginPath();
    paint.rect(left, top, side, side);
    paint.clip();
    const first = [Math.floor(originX), Math.floor(originY)];
    const last = [originX, originY].map((o) => Math.min(count, Math.ceil(o + count / zoom)));
    const gap = cell > 8 ? 1 : 0;
    paint.textAlign = "center";
    paint.textBaseline = "middle";
    for (let i = first[1]; i < last[1]; i++) {
      for (let j = first[0]; j < last[0]; j++) {
        const value = !diagonal && i === j ? 0 : share[mode](i, j);
        // The square root makes small confusions visible.
        const level = most ? Math.sqrt(value / most) : 0;
        const tone = level < 0.65 ? mix(paper, accent, level / 0.65) : mix(accent, strong, (level - 0.65) / 0.35);
        const [x, y] = [left + (j - originX) * cell, top + (i - originY) * cell];
        paint.fillStyle = `rgb(${tone})`;
        paint.fillRect(x, y, cell - gap + 0.3, cell - gap + 0.3);
        if (cell >= 30 && matrix[i][j] && (diagonal || i !== j)) {
          const bright = 0.3 * tone[0] + 0.6 * tone[1] + 0.1 * tone[2] > 140;
          paint.fillStyle = bright ? "#10141c" : "#f4f7fb";
          paint.font = `${Math.min(13, cell / 3.2)}px system-ui, sans-serif`;
          const text = mode === "pixels" ? compact(matrix[i][j]) : percent(value);
          paint.fillText(text, x + cell / 2, y + cell / 2);
        }
      }
    }
    if (hovered) {
      paint.strokeStyle = ink;
      paint.lineWidth = 1.5;
      paint.strokeRect(left + (hovered[1] - originX) * cell, top + (hovered[0] - originY) * cell, cell - gap, cell - gap);
    }
    paint.restore();
    paint.strokeStyle = rule;
    paint.strokeRect(left - 0.5, top - 0.5, side + 1, side + 1);
    paint.fillStyle = faint;
    paint.font = "12px system-ui, sans-serif";
    paint.textAlign = "left";
    paint.fillText("label ↓   prediction →", 10, 14);
    names(first, last, cell, ink);
  }

  function names(first, last, cell, ink) {
    const { side, left, top, gutter } = layout;
    // Names that do not fit are left out evenly rather than printed over each other.
    const every = Math.max(1, Math.ceil(10 / cell));
    paint.fillStyle = ink;
    paint.font = `${Math.max(9, Math.min(13, cell * 0.8))}px system-ui, sans-serif`;
    for (let k = first[1]; k < last[1]; k++) {
      const y = top + (k + 0.5 - originY) * cell;
      if (k % every || y < top || y > top + side) continue;
      paint.textAlign = "right";
      paint.fillText(cut(classes[k], gutter - 12), left - 6, y);
    }
    for (let k = first[0]; k < last[0]; k++) {
      const x = left + (k + 0.5 - originX) * cell;
      if (k % every || x < left || x > left + side) continue;
      paint.save();
      paint.translate(x, top - 6);
      paint.rotate(-Math.PI / 2);
      paint.textAlign = "left";
      paint.fillText(cut(classes[k], gutter - 28), 0, 0);
      paint.restore();
    }
  }

  function cut(text, width) {
    if (paint.measureText(text).width <= width) return text;
    let kept = text;
    while (kept && paint.measureText(kept + "…").width > width) kept = kept.slice(0, -1);
    return kept + "…";
  }
  function percent(value) {
    const p = 100 * value;
    return p >= 9.95 ? p.toFixed(0) : p >= 0.95 ? p.toFixed(1) : p >= 0.05 ? p.toFixed(1) : "";
  }
  function compact(value) {
    return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
  }
  function cellAt(event) {
    const box = canvas.getBoundingClientRect();
    const cell = layout.side * zoom / count;
    const x = event.clientX - box.left - layout.left, y = event.clientY - box.top - layout.top;
    if (x < 0 || y < 0 || x >= layout.side || y >= layout.side) return null;
    return [Math.floor(y / cell + originY), Math.floor(x / cell + originX)];
  }
  function describe(i, j) {
    const pixels = matrix[i][j].toLocaleString("en");
    const ofRow = (100 * share.row(i, j)).toFixed(2), ofColumn = (100 * share.column(i, j)).toFixed(2);
    const head = i === j ? `${classes[i]}, found` : `${classes[i]} → taken for ${classes[j]}`;
    return `${head}\n${pixels} pixels\n${ofRow} % of what is ${classes[i]}\n${ofColumn} % of what was called ${classes[j]}`;
  }
  function zoomAt(factor, x, y) {
    const next = Math.min(Math.max(zoom * factor, 1), Math.max(1, count / 4));
    const [fx, fy] = [x / layout.side, y / layout.side];
    originX += fx * count * (1 / zoom - 1 / next);
    originY += fy * count * (1 / zoom - 1 / next);
    zoom = next;
    draw();
  }

  let held = null;
  canvas.addEventListener("pointerdown", (e) => {
    held = { x: e.clientX, y: e.clientY, originX, originY };
    canvas.setPointerCapture(e.pointerId);
  });
  canvas.addEventListener("pointerup", () => { held = null; });
  canvas.addEventListener("pointermove", (e) => {
    if (held) {
      const cell = layout.side * zoom / count;
      originX = held.originX - (e.clientX - held.x) / cell;
      originY = held.originY - (e.clientY - held.y) / cell;
    }
    const found = cellAt(e);
    hovered = found;
    draw();
    if (found) showTip(describe(...found), e.clientX, e.clientY); else hideTip();
  });
  canvas.addEventListener("pointerleave", () => { hovered = null; hideTip(); draw(); });
  canvas.addEventListener("dblclick", (e) => {
    const box = canvas.getBoundingClientRect();
    zoomAt(2, e.clientX - box.left - layout.left, e.clientY - box.top - layout.top);
  });
  // Only with a modifier, so that the wheel still scrolls the page.
  canvas.addEventListener("wheel", (e) => {
    if (!e.ctrlKey && !e.metaKey) return;
    e.preventDefault();
    const box = canvas.getBoundingClientRect();
    zoomAt(Math.exp(-e.deltaY / 250), e.clientX - box.left - layout.left, e.clientY - box.top - layout.top);
  }, { passive: false });
  canvas.addEventListener("keydown", (e) => {
    const step = count / zoom / 8, half = layout.side / 2;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (moves[e.key]) { originX += moves[e.key][0]; originY += moves[e.key][1]; draw(); e.preventDefault(); }
    if (e.key === "+" || e.key === "=") zoomAt(1.5, half, half);
    if (e.key === "-") zoomAt(1 / 1.5, half, half);
  });
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => {
      const factor = Number(button.dataset.zoom);
      zoomAt(factor || 1e-9, layout.side / 2, layout.side / 2);
    });
  }
  const modes = [...document.querySelectorAll("[data-mode]")];
  for (const button of modes) {
    button.addEventListener("click", () => {
      mode = button.dataset.mode;
      for (const other of modes) other.setAttribute("aria-pressed", String(other === button));
      draw();
    });
  }
  document.getElementById("diagonal").addEventListener("click", (e) => {
    diagonal = !diagonal;
    e.currentTarget.setAttribute("aria-pressed", String(!diagonal));
    draw();
  });
  new ResizeObserver(() => { if (!layout || canvas.clientWidth !== layout.width) { measure(); draw(); } }).observe(canvas);
  redraws.push(() => { measure(); draw(); });
  measure();
  draw();
})();
