// From the pixels of an image to its label map: the arithmetic of `Predictor`, in JavaScript.
//
// Resizing is that of OpenCV (bilinear, 8 bits, weights of 11 bits).  Decoding is
// `cgrseg.ops.upsample_argmax`: the best class of bilinearly resized logits, without resizing
// classes that cannot win.
//
// `settings` holds `resize`, `scale` and `divisor` of the test settings, `sizes` (heights and widths
// that the network takes; null: any multiples of 32), `mean`, `std` and `classes` (their number).

const STRIDE = 32; // largest stride of the network
const CELL = 8; // pixels of the network's input per logit
const ONE = 2048; // OpenCV's weight 1

// ---- Sizes ----------------------------------------------------------------------------------

const roundUp = (length, divisor) => Math.ceil(length / divisor) * divisor;

function scaledSize([height, width], scale) {
  const factor = Math.min(Math.max(...scale) / Math.max(height, width), Math.min(...scale) / Math.min(height, width));
  return [height, width].map((side) => Math.max(1, Math.floor(side * factor + 0.5)));
}

// What an image of [height, width] becomes: `steps` of resizing, `padded` size, and the size of the
// network's `input`, which is larger where the network takes given sizes only.
export function planInput(size, settings) {
  const { resize, scale, divisor, sizes } = settings;
  const plan = (mode, limits, multiple) => {
    const steps = mode === "none" ? [] : [scaledSize(size, limits)];
    if (mode === "keep_ratio_divisible") steps.push(steps[0].map((side) => roundUp(side, multiple)));
    const kept = steps.at(-1) ?? size;
    return { steps, kept, padded: kept.map((side) => roundUp(roundUp(side, multiple), STRIDE)) };
  };
  const accepted = (padded) => sizes.some((each) => each[0] === padded[0] && each[1] === padded[1]);
  let found = plan(resize, scale, divisor);
  if (sizes && !accepted(found.padded)) {
    const [height, width] = size;
    const factor = (each) => Math.min(each[0] / height, each[1] / width);
    const better = (one, other) => factor(one) > factor(other) ||
      (factor(one) === factor(other) && one[0] * one[1] < other[0] * other[1]);
    const best = sizes.reduce((one, other) => (better(other, one) ? other : one));
    const fitted = [Math.max(height, width), Math.min(height, width)].map((side) =>
      Math.max(1, Math.floor(side * factor(best) + 0.5)));
    found = plan("keep_ratio", fitted, STRIDE);
  }
  const fitting = sizes?.filter((each) => each[0] >= found.padded[0] && each[1] >= found.padded[1]);
  const input = fitting?.reduce((one, other) => (other[0] * other[1] < one[0] * one[1] ? other : one));
  return { ...found, size, input: input ?? found.padded };
}

// ---- From pixels to the network's input -----------------------------------------------------

// `image` is {data, width, height, channels}, 8 bits, of which the first three channels count.
export function resizeImage(image, [height, width]) {
  if (image.height === height && image.width === width) return image;
  const halved = image.height === 2 * height && image.width === 2 * width;
  const data = halved ? halve(image, height, width) : resizeBilinear(image, height, width);
  return { data, width, height, channels: 3 };
}

function halve({ data, width: full, channels }, height, width) {
  const target = new Uint8Array(height * width * 3);
  for (let y = 0, out = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = (2 * y * full + 2 * x) * channels;
      const below = at + full * channels;
      for (let c = 0; c < 3; c++, out++) {
        target[out] = (data[at + c] + data[at + channels + c] + data[below + c] + data[below + channels + c] + 2) >> 2;
      }
    }
  }
  return target;
}

function halfToEven(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2) ? floor + 1 : floor;
}

// First source position and integer weights of every output position.  `clamp`: positions beyond the
// border get the whole weight; rows are repeated instead.
function cvTaps(source, target, clamp) {
  const scale = 1 / (target / source);
  const [first, near, far] = [new Int32Array(target), new Int32Array(target), new Int32Array(target)];
  for (let d = 0; d < target; d++) {
    const position = Math.fround((d + 0.5) * scale - 0.5);
    let at = Math.floor(position);
    let share = Math.fround(position - at);
    if (clamp && at < 0) [at, share] = [0, 0];
    if (clamp && at >= source - 1) [at, share] = [source - 1, 0];
    first[d] = at;
    near[d] = halfToEven(Math.fround(1 - share) * ONE);
    far[d] = halfToEven(share * ONE);
  }
  return { first, near, far };
}

function resizeBilinear(image, height, width) {
  const { data, channels } = image;
  const columns = cvTaps(image.width, width, true);
  const rows = cvTaps(image.height, height, false);
  const target = new Uint8Array(height * width * 3);
  const lines = [new Int32Array(width * 3), new Int32Array(width * 3)];
  const held = [-1, -1];
  const line = (row) => { // a source row resized horizontally; the last two are kept
    const place = row & 1;
    if (held[place] === row) return lines[place];
    const into = lines[place];
    const start = row * image.width;
    for (let x = 0, out = 0; x < width; x++) {
      const column = columns.first[x];
      const at = (start + column) * channels;
      const next = column + 1 < image.width ? at + channels : at;
      const [near, far] = [columns.near[x], columns.far[x]];
      for (let c = 0; c < 3; c++) into[out++] = data[at + c] * near + data[next + c] * far;
    }
    held[place] = row;
    return into;
  };
  const inside = (row) => Math.min(Math.max(row, 0), image.height - 1);
  for (let y = 0, out = 0; y < height; y++) {
    const upper = line(inside(rows.first[y]));
    const lower = line(inside(rows.first[y] + 1));
    const [near, far] = [rows.near[y], rows.far[y]];
    for (let x = 0; x < width * 3; x++) {
      target[out++] = (((near * (upper[x] >> 4)) >> 16) + ((far * (lower[x] >> 4)) >> 16) + 2) >> 2;
    }
  }
  return target;
}

// Float32Array (3, H, W) of the plan's input size: resized, normalized, zeros at the right and below.
export function networkInput(image, plan, { mean, std }) {
  const resized = plan.steps.reduce(resizeImage, image);
  const [height, width] = plan.input;
  const input = new Float32Array(3 * height * width);
  for (let c = 0; c < 3; c++) {
    const [middle, factor] = [Math.fround(mean[c]), Math.fround(1 / std[c])];
    const table = Float32Array.from({ length: 256 }, (_, value) => Math.fround(value - middle) * factor);
    for (let y = 0; y < resized.height; y++) {
      let at = y * resized.width * resized.channels + c;
      const start = (c * height + y) * width;
      for (let x = 0; x < resized.width; x++, at += resized.channels) input[start + x] = table[resized.data[at]];
    }
  }
  return input;
}

// ---- From logits to labels ------------------------------------------------------------------

// Per output two source positions with weights, as torch's `interpolate` without aligned corners.
function bilinearTaps(source, target) {
  return Array.from({ length: target }, (_, output) => {
    const center = source === target ? output : Math.max(0, (output + 0.5) * (source / target) - 0.5);
    const low = Math.min(Math.floor(center), source - 1);
    const share = low + 1 < source ? center - low : 0;
    return share ? [[low, 1 - share], [low + 1, share]] : [[low, 1]];
  });
}

// Runs of consecutive outputs of one axis that depend on the same cells: {start, cells, weights}, the
// weights of each output in turn.  The axis is resized to `padded`, cropped to `kept`, resized again.
function axisRuns(cells, padded, kept, target) {
  const inner = bilinearTaps(cells, padded);
  const runs = [];
  bilinearTaps(kept, target).forEach((outer, output) => {
    const merged = new Map();
    for (const [between, share] of outer) {
      for (const [cell, weight] of inner[between]) merged.set(cell, (merged.get(cell) ?? 0) + share * weight);
    }
    const used = [...merged.keys()].sort((one, other) => one - other);
    const last = runs.at(-1);
    const same = last && last.cells.length === used.length && last.cells.every((cell, tap) => cell === used[tap]);
    if (!same) runs.push({ start: output, cells: used, weights: [] });
    runs.at(-1).weights.push(used.map((cell) => merged.get(cell)));
  });
  return runs;
}

// Uint8Array of class ids at the image's own size.
// `logits` is a Float32Array (classes, input height / 8, input width / 8).
export function upsampleArgmax(logits, classes, plan) {
  const [rows, columns] = plan.input.map((side) => side / CELL);
  const grid = new Float32Array(logits.length); // classes innermost
  const winners = new Uint8Array(rows * columns);
  const best = new Float32Array(rows * columns).fill(-Infinity);
  for (let k = 0, at = 0; k < classes; k++) {
    for (let cell = 0; cell < rows * columns; cell++, at++) {
      const value = logits[at];
      if (!Number.isFinite(value)) throw new Error("The network gave a logit that is NaN or infinite.");
      grid[cell * classes + k] = value;
      if (value > best[cell]) [best[cell], winners[cell]] = [value, k];
    }
  }
  const [height, width] = plan.size;
  const labels = new Uint8Array(height * width);
  const [tall, wide] = [0, 1].map((axis) =>
    axisRuns(plan.padded[axis] / CELL, plan.padded[axis], plan.kept[axis], plan.size[axis]));
  for (const row of tall) {
    for (const column of wide) {
      const nodes = row.cells.flatMap((y) => column.cells.map((x) => y * columns + x));
      const first = winners[nodes[0]];
      if (nodes.every((node) => winners[node] === first)) {
        for (let y = 0; y < row.weights.length; y++) {
          const start = (row.start + y) * width + column.start;
          labels.fill(first, start, start + column.weights.length);
        }
      } else {
        decide(grid, classes, candidates(grid, classes, nodes, winners), nodes, row, column, labels, width);
      }
    }
  }
  return labels;
}

// Classes that can win between some cells.  The mean of the cells' winners is resized like any class,
// and nowhere above the best: a class below it in every cell cannot win.
function candidates(grid, classes, nodes, winners) {
  const seen = nodes.map((node) => winners[node]);
  const starts = nodes.map((node) => node * classes);
  const means = starts.map((start) => seen.reduce((sum, k) => sum + grid[start + k], 0) / seen.length);
  const found = [];
  for (let k = 0; k < classes; k++) {
    if (seen.includes(k) || starts.some((start, node) => grid[start + k] >= means[node])) found.push(k);
  }
  return found;
}

function decide(grid, classes, ids, nodes, row, column, labels, width) {
  const taps = column.cells.length;
  const line = new Float64Array(ids.length * taps); // candidates resized vertically
  for (let y = 0; y < row.weights.length; y++) {
    const vertical = row.weights[y];
    for (let i = 0; i < ids.length; i++) {
      for (let tap = 0; tap < taps; tap++) {
        let sum = 0;
        for (let up = 0; up < vertical.length; up++) sum += vertical[up] * grid[nodes[up * taps + tap] * classes + ids[i]];
        line[i * taps + tap] = sum;
      }
    }
    const start = (row.start + y) * width + column.start;
    for (let x = 0; x < column.weights.length; x++) {
      const horizontal = column.weights[x];
      let [best, label] = [-Infinity, 0];
      for (let i = 0; i < ids.length; i++) {
        let value = 0;
        for (let tap = 0; tap < taps; tap++) value += horizontal[tap] * line[i * taps + tap];
        if (value > best) [best, label] = [value, ids[i]]; // of equal ones the first
      }
      labels[start + x] = label;
    }
  }
}

// ---- Label maps as files --------------------------------------------------------------------

const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value >>> 0;
});

function pngChunk(kind, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set([...kind].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(content, 8);
  let sum = 0xffffffff;
  for (const byte of bytes.subarray(4, content.length + 8)) sum = CRC[(sum ^ byte) & 255] ^ (sum >>> 8);
  view.setUint32(content.length + 8, ~sum);
  return bytes;
}

// An indexed PNG of class ids; `classes` are {id, color} in id order.
export async function encodeIndexedPng({ width, height, ids }, classes) {
  const header = new DataView(new ArrayBuffer(13));
  header.setUint32(0, width);
  header.setUint32(4, height);
  header.setUint16(8, 0x0803); // 8 bits, indexed
  const rows = new Uint8Array(height * (width + 1)); // each row after its filter, 0
  for (let y = 0; y < height; y++) rows.set(ids.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const colors = Uint8Array.from(classes.flatMap(({ color }) => color));
  return new Blob([
    Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a),
    pngChunk("IHDR", new Uint8Array(header.buffer)),
    pngChunk("PLTE", colors),
    pngChunk("IDAT", new Uint8Array(await new Response(packed).arrayBuffer())),
    pngChunk("IEND", new Uint8Array(0)),
  ], { type: "image/png" });
}
