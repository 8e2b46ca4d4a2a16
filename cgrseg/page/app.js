// The page: choose an image or a video, get labels, read them.
//
// `labels.js` is labels_from_server.js or labels_in_browser.js: who delivers the page decides.  Its
// `source` has these functions, and all else is the same for both:
//
// - start(): prepare the page; returns what the page promises, a sentence.
// - models(): {models: [{name, classes: [{id, name, color}], channels, shown}], limits: {pixels,
//   frames}}; `channels` (names) and `shown` (three of them) where the model does not take RGB.
// - picture(file, model, bands, signal): an image that the browser cannot show; may be missing.
// - segment(image, model, signal, tell): label map {width, height, ids} of a Blob or a canvas, with
//   png(), a Blob; `tell` gets a line of text while the user waits.
// - example(): Blob of an image.

import { source } from "./labels.js";

const $ = (id) => document.getElementById(id);

// ---- Label maps -----------------------------------------------------------------------------

// Classes that occur, with their share of the pixels, largest first.
function classShares(labels, classes) {
  const counts = new Array(256).fill(0);
  for (const id of labels.ids) counts[id]++;
  return classes
    .map((each) => ({ ...each, pixels: counts[each.id], share: counts[each.id] / labels.ids.length }))
    .filter((each) => each.pixels)
    .sort((a, b) => b.pixels - a.pixels);
}

function paintLabels(canvas, labels, classes, width, height) {
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const colors = new Uint32Array(256).fill(0xff000000);
  for (const { id, color: [red, green, blue] } of classes) {
    colors[id] = (0xff000000 | (blue << 16) | (green << 8) | red) >>> 0;
  }
  const target = new Uint32Array(pixels.data.buffer);
  for (let y = 0; y < height; y++) {
    const row = Math.floor(((y + 0.5) * labels.height) / height) * labels.width;
    for (let x = 0; x < width; x++) {
      target[y * width + x] = colors[labels.ids[row + Math.floor(((x + 0.5) * labels.width) / width)]];
    }
  }
  context.putImageData(pixels, 0, 0);
}

// ---- Viewer ---------------------------------------------------------------------------------

const SHOWN_SIDE = 1600; // longest side in pixels of what is drawn on the screen
const SAVED_SIDE = 8192; // and of a saved overlay
const viewer = { labels: null, classes: [], image: null, file: null, x: 0, y: 0 };

function fitted(width, height, longest) {
  const factor = Math.min(1, longest / Math.max(width, height));
  return [Math.max(1, Math.round(width * factor)), Math.max(1, Math.round(height * factor))];
}

function drawImage(canvas, image, width, height) {
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.fillStyle = "#888";
  context.fillRect(0, 0, width, height);
  if (image) context.drawImage(image, 0, 0, width, height);
}

// `image` is what can be drawn on a canvas; null for formats that the browser cannot show.
function show(image, labels, classes) {
  Object.assign(viewer, { image, labels, classes });
  const size = fitted(labels.width, labels.height, SHOWN_SIDE);
  drawImage($("image"), image, ...size);
  paintLabels($("paint"), labels, classes, ...size);
  $("stage").classList.toggle("tall", labels.height > labels.width);
  $("legend").replaceChildren(...classShares(labels, classes).map(legendRow));
  $("empty").hidden = true;
  $("view").hidden = false;
}

function legendRow({ name, color, share }) {
  const row = document.createElement("tr");
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = `rgb(${color.join(" ")})`;
  row.insertCell().append(swatch, name);
  row.insertCell().textContent = `${(100 * share).toFixed(1)} %`;
  return row;
}

// Image, then labels in their opacity, at the size of the label map.
function overlay(longest) {
  const [width, height] = fitted(viewer.labels.width, viewer.labels.height, longest);
  const [canvas, paint] = [document.createElement("canvas"), document.createElement("canvas")];
  drawImage(canvas, viewer.image, width, height);
  paintLabels(paint, viewer.labels, viewer.classes, width, height);
  const context = canvas.getContext("2d");
  context.globalAlpha = $("opacity").value / 100;
  context.drawImage(paint, 0, 0);
  return canvas;
}

// `x` and `y` are fractions of the width and the height.
function readClass(x, y, byKeyboard) {
  const { labels, classes } = viewer;
  [viewer.x, viewer.y] = [x, y].map((value) => Math.min(1, Math.max(0, value)));
  const column = Math.min(labels.width - 1, Math.floor(viewer.x * labels.width));
  const row = Math.min(labels.height - 1, Math.floor(viewer.y * labels.height));
  for (const element of [$("tip"), $("cross")]) {
    element.style.left = `${100 * viewer.x}%`;
    element.style.top = `${100 * viewer.y}%`;
  }
  $("tip").textContent = classes[labels.ids[row * labels.width + column]]?.name ?? "no class";
  $("tip").classList.toggle("left", viewer.x > 0.5);
  $("tip").hidden = false;
  $("cross").hidden = !byKeyboard;
}

function hideClass() {
  $("tip").hidden = $("cross").hidden = true;
}

function pointed(event) {
  const box = $("stage").getBoundingClientRect();
  readClass((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height, false);
}

$("stage").addEventListener("pointermove", pointed);
$("stage").addEventListener("pointerdown", pointed);
$("stage").addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hideClass());
$("stage").addEventListener("blur", hideClass);
$("stage").addEventListener("keydown", (event) => {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!move) return;
  event.preventDefault();
  if ($("cross").hidden && $("tip").hidden) return readClass(0.5, 0.5, true);
  const step = event.shiftKey ? 0.002 : 0.02;
  readClass(viewer.x + step * move[0], viewer.y + step * move[1], true);
});
$("opacity").addEventListener("input", () => {
  $("opacity-value").textContent = `${$("opacity").value} %`;
  document.documentElement.style.setProperty("--opacity", $("opacity").value / 100);
});

// ---- Work: one image or frame after another -------------------------------------------------

const state = { models: [], limits: {}, file: null, name: "image", video: null, work: null };

function say(text) {
  $("status").textContent = text;
}

function complain(error) {
  if (error.name === "AbortError") return;
  $("problem").textContent = error.message;
  $("problem").hidden = false;
  say("");
}

function begin() {
  state.work?.abort();
  state.work = new AbortController();
  $("problem").hidden = true;
  return state.work.signal;
}

// Once; after a failure the next image tries again.
async function loadModels() {
  if (state.models.length) return;
  Object.assign(state, await source.models());
  $("model").replaceChildren(...state.models.map(({ name }) => new Option(name)));
  $("model-field").hidden = state.models.length < 2;
  offerBands();
}

function offerBands() {
  const { channels = [], shown } = state.models[$("model").selectedIndex];
  $("bands").hidden = !channels.length;
  for (const [number, select] of bandSelects().entries()) {
    select.replaceChildren(...channels.map((name) => new Option(name)));
    if (shown) select.value = shown[number];
  }
}

const bandSelects = () => [...$("bands").querySelectorAll("select")];

// What can be drawn of a file; null: nothing that the browser can show.
async function imageOf(file, signal) {
  const model = state.models[$("model").selectedIndex];
  if (model.channels) return source.picture(file, model, bandSelects().map((each) => each.value), signal);
  return createImageBitmap(file).catch(() => source.picture?.(file, model, [], signal) ?? null);
}

async function labelsOf(image, signal) {
  await loadModels();
  signal.throwIfAborted();
  const model = state.models[$("model").selectedIndex];
  const labels = await source.segment(image, model, signal, (text) => !signal.aborted && say(text));
  signal.throwIfAborted();
  return { labels, classes: model.classes };
}

async function openFile(file) {
  closeVideo();
  viewer.file = null;
  const signal = begin();
  state.file = file;
  state.name = file.name?.replace(/\.[^.]*$/, "") || "image";
  try {
    if (file.type.startsWith("video/")) await openVideo(file, signal);
    else await labelImage(file, signal);
  } catch (error) {
    $("view").hidden = true;
    $("empty").hidden = false;
    complain(error);
  }
}

async function labelImage(file, signal) {
  say("Labeling …");
  const began = performance.now();
  const { labels, classes } = await labelsOf(file, signal);
  const image = await imageOf(file, signal).catch((error) => complain(error)); // labels need no image
  signal.throwIfAborted();
  show(image ?? null, labels, classes);
  viewer.file = file;
  say(`${labels.width}×${labels.height} pixels, ${((performance.now() - began) / 1000).toFixed(1)} s.`);
}

// ---- Video: the browser decodes it, one frame is labeled at a time ---------------------

const RATE = 10; // frames per second of a recorded video

async function openVideo(file, signal) {
  const video = document.createElement("video");
  Object.assign(video, { muted: true, playsInline: true, preload: "auto", src: URL.createObjectURL(file) });
  state.video = video;
  await happened(video, "loadeddata", signal);
  if (video.duration === Infinity) { // recordings of browsers do not say it; the end is found
    await seekTo(Number.MAX_SAFE_INTEGER, signal);
    await seekTo(0, signal);
  }
  $("player").hidden = false;
  $("seek").max = video.duration;
  video.addEventListener("ended", stopPlaying);
  await labelFrame(signal);
}

function closeVideo() {
  if (!state.video) return;
  stopPlaying();
  URL.revokeObjectURL(state.video.src);
  state.video = null;
  $("player").hidden = true;
}

function happened(video, name, signal) {
  return new Promise((resolve, reject) => {
    video.addEventListener(name, resolve, { once: true, signal });
    video.addEventListener("error", () => reject(new Error("The browser cannot play this video.\nExpected: MP4 (H.264), WebM or another format that it plays.\nConvert the video, or run `cgrseg predict` on it.")), { once: true, signal });
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

async function labelFrame(signal) {
  const video = state.video;
  const frame = document.createElement("canvas");
  const side = Math.sqrt(state.limits.pixels / (video.videoWidth * video.videoHeight)) * Math.max(video.videoWidth, video.videoHeight);
  drawImage(frame, video, ...fitted(video.videoWidth, video.videoHeight, side));
  const at = video.currentTime;
  const { labels, classes } = await labelsOf(frame, signal);
  show(frame, labels, classes);
  $("seek").value = at;
  $("time").textContent = `${at.toFixed(1)} of ${video.duration.toFixed(1)} s`;
  say(`Frame at ${at.toFixed(1)} s, ${labels.width}×${labels.height} pixels.`);
}

function stopPlaying() {
  state.video.pause();
  $("play").textContent = "Play";
}

$("play").addEventListener("click", async () => {
  if (!state.video.paused) return stopPlaying();
  const [signal, video] = [begin(), state.video];
  $("play").textContent = "Pause";
  try {
    await video.play();
    while (!video.paused) await labelFrame(signal);
  } catch (error) {
    if (video === state.video) stopPlaying();
    complain(error);
  }
});

async function seekTo(seconds, signal) {
  const seeked = happened(state.video, "seeked", signal);
  state.video.currentTime = seconds;
  await seeked;
}

$("seek").addEventListener("input", async () => {
  const signal = begin();
  try {
    stopPlaying();
    await seekTo(Number($("seek").value), signal);
    await labelFrame(signal);
  } catch (error) {
    complain(error);
  }
});

$("record").addEventListener("click", async () => {
  if ($("record").dataset.running) return state.work.abort();
  const signal = begin();
  stopPlaying();
  $("record").dataset.running = "yes";
  $("record").textContent = "Stop recording";
  try {
    const all = Math.max(1, Math.floor(state.video.duration * RATE));
    const count = Math.min(all, state.limits.frames);
    const frames = [];
    for (let number = 0; number < count; number++) {
      await seekTo(number / RATE, signal);
      await labelFrame(signal);
      const frame = overlay(SHOWN_SIDE);
      frames.push(await new Promise((resolve) => frame.toBlob(resolve, "image/jpeg", 0.92)));
      say(`Frame ${number + 1} of ${count}.`);
    }
    say("Writing the video …");
    save(await encodeVideo(frames, signal), `${state.name}_overlay`);
    say(`Recorded ${count} frames` + (count < all ? `, the first ${count / RATE} s: the limit.` : "."));
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    complain(error);
  } finally {
    delete $("record").dataset.running;
    $("record").textContent = "Record labeled video";
  }
});

// A video of JPEG frames, in the time that it takes to play it.
async function encodeVideo(frames, signal) {
  const canvas = document.createElement("canvas");
  const first = await createImageBitmap(frames[0]);
  drawImage(canvas, first, first.width, first.height);
  first.close();
  const recorder = new MediaRecorder(canvas.captureStream(RATE));
  const parts = [];
  recorder.ondataavailable = (event) => parts.push(event.data);
  const stopped = new Promise((resolve) => (recorder.onstop = resolve));
  recorder.start();
  for (const frame of frames) {
    const shown = new Promise((resolve) => setTimeout(resolve, 1000 / RATE));
    const image = await createImageBitmap(frame);
    canvas.getContext("2d").drawImage(image, 0, 0);
    image.close();
    await shown;
    signal.throwIfAborted();
  }
  recorder.stop();
  await stopped;
  return new Blob(parts, { type: recorder.mimeType });
}

// ---- Input and downloads --------------------------------------------------------------------

function save(blob, stem) {
  const link = document.createElement("a");
  const ending = { "image/png": "png", "text/csv": "csv", "video/mp4": "mp4" }[blob.type.split(";")[0]] ?? "webm";
  link.download = `${stem}.${ending}`;
  link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

$("save-labels").addEventListener("click", async () => save(await viewer.labels.png(), `${state.name}_labels`));
$("save-overlay").addEventListener("click", () =>
  overlay(SAVED_SIDE).toBlob((blob) => save(blob, `${state.name}_overlay`), "image/png"));
$("save-shares").addEventListener("click", () => {
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  const rows = classShares(viewer.labels, viewer.classes).map((each) =>
    [each.id, quoted(each.name), each.pixels, each.share.toFixed(6)].join(","));
  save(new Blob([["id,class,pixels,share", ...rows, ""].join("\n")], { type: "text/csv" }), `${state.name}_shares`);
});

for (const input of [$("file"), $("capture")]) {
  input.addEventListener("change", () => {
    if (input.files.length) openFile(input.files[0]);
    input.value = ""; // the same file can be chosen again
  });
}
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) openFile(event.clipboardData.files[0]);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files.length) openFile(event.dataTransfer.files[0]);
});
$("bands").addEventListener("change", async () => {
  if (!viewer.file) return; // what is being labeled will be shown in these channels
  const signal = begin();
  try {
    const image = await imageOf(viewer.file, signal);
    signal.throwIfAborted();
    show(image, viewer.labels, viewer.classes);
  } catch (error) {
    complain(error);
  }
});
$("model").addEventListener("change", () => {
  offerBands();
  if (state.video) $("seek").dispatchEvent(new Event("input"));
  else if (state.file) openFile(state.file);
});
$("example").addEventListener("click", async () => {
  try {
    openFile(new File([await source.example()], "example.jpg", { type: "image/jpeg" }));
  } catch (error) {
    complain(error);
  }
});
$("camera").addEventListener("click", async () => {
  // Browsers give the camera to pages of this machine and to HTTPS; elsewhere a phone takes an image.
  if (!navigator.mediaDevices) return $("capture").click();
  try {
    $("preview").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    return complain(new Error(`The camera cannot be used (${error.message}).`));
  }
  $("camera-dialog").showModal();
  await $("preview").play();
});
$("shoot").addEventListener("click", () => {
  const frame = document.createElement("canvas");
  drawImage(frame, $("preview"), $("preview").videoWidth, $("preview").videoHeight);
  frame.toBlob((blob) => openFile(new File([blob], "camera.jpg", { type: blob.type })), "image/jpeg", 0.95);
  $("camera-dialog").close();
});
$("camera-close").addEventListener("click", () => $("camera-dialog").close());
$("camera-dialog").addEventListener("close", () => {
  for (const track of $("preview").srcObject?.getTracks() ?? []) track.stop();
});

// ---- Start ----------------------------------------------------------------------------------

async function start() {
  $("promise").textContent = await source.start();
  await loadModels().catch(complain);
}

start();
