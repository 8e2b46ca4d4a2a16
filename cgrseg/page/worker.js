// Runs the network with ONNX Runtime Web, apart from the page.
//
// The first message is {device, model}: "wasm" or "webgpu", and the content of network.json.  Every
// further one is {image}, a Blob or an ImageBitmap, and is answered by {width, height, ids}, or by
// {error}; {text} says what is being done meanwhile.

import { networkInput, planInput, upsampleArgmax } from "./segmenting.js";

const MOST_SESSIONS = 2; // each holds a copy of the weights, for one input size
// Waiting threads sleep: where other programs run too, those that spin take their own work's time.
const SLEEPING = { session: { intra_op: { allow_spinning: "0" } } };
const RUNTIMES = { wasm: "./ort.wasm.min.mjs", webgpu: "./ort.webgpu.min.mjs" };

// ONNX Runtime starts its threads by address: only its own files are allowed.
const FOLDER = new URL("./", self.location.href).href;
self.trustedTypes?.createPolicy("default", {
  createScriptURL: (address) => (address.startsWith(`${FOLDER}ort`) ? address : null),
});

let setUp; // promise of {ort, model, device, content}
const sessions = new Map();

self.addEventListener("message", async ({ data }) => {
  if (data.model) {
    setUp = load(data);
    setUp.catch(() => {}); // told to who sends an image
    return;
  }
  try {
    const labels = await segment(data.image, await setUp);
    self.postMessage(labels, [labels.ids.buffer]);
  } catch (error) {
    self.postMessage({ error: error.message || String(error) });
  }
});

async function load({ device, model }) {
  await checkCanvas();
  const [ort, content] = await Promise.all([import(RUNTIMES[device]), read("network.onnx", model.bytes)]);
  ort.env.wasm.wasmPaths = FOLDER;
  ort.env.wasm.numThreads = threads();
  return { ort, model, device, content };
}

// Threads share memory, which browsers allow to isolated pages only (headers COOP and COEP).
function threads() {
  const cores = navigator.hardwareConcurrency || 1;
  return self.crossOriginIsolated ? Math.max(Math.min(cores, 4), Math.min(cores >> 1, 8)) : 1;
}

async function read(name, size) {
  const answer = await fetch(name, { cache: "no-cache" }); // one of an earlier export may be kept
  if (!answer.ok) throw new Error(`The server answered with status ${answer.status} for ${name}.`);
  const content = new Uint8Array(size);
  const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
  let done = 0;
  for (const reader = answer.body.getReader(); ;) {
    const { value } = await reader.read();
    if (value && done + value.length <= size) content.set(value, done);
    done += value?.length ?? 0;
    if (!value) break;
    self.postMessage({ text: `Loading the network: ${megabytes(done)} of ${megabytes(size)} MB.` });
  }
  if (done !== size) throw new Error(`${name} has ${done} bytes.\nExpected: ${size}, as network.json says.\nCopy the folder again.`);
  return content;
}

async function segment(image, { ort, model, device, content }) {
  const pixels = await decode(image, model.limits.pixels);
  const plan = planInput([pixels.height, pixels.width], model.settings);
  const [height, width] = plan.input;
  if (height * width > model.limits.input_pixels) {
    throw new Error(`The image would need a network input of ${width}×${height} pixels.\nExpected: at most ${model.limits.input_pixels / 1e6} megapixels.\nMake the image smaller.`);
  }
  const session = await sessionFor(ort, content, device, height, width);
  const input = new ort.Tensor("float32", networkInput(pixels, plan, model.settings), [1, 3, height, width]);
  const { [session.outputNames[0]]: output } = await session.run({ [session.inputNames[0]]: input });
  const ids = upsampleArgmax(output.data, model.classes.length, plan);
  output.dispose();
  return { width: pixels.width, height: pixels.height, ids };
}

async function decode(image, most) {
  const bitmap = image instanceof ImageBitmap ? image : await createImageBitmap(image, { colorSpaceConversion: "none" }).catch(() => {
    throw new Error("The browser cannot read this file as an image.\nExpected: JPEG, PNG, WebP or another format that it shows.\nChoose another file, or convert it.");
  });
  const { width, height } = bitmap;
  if (width * height > most) {
    bitmap.close();
    throw new Error(`The image has ${width}×${height} pixels.\nExpected: at most ${most / 1e6} megapixels.\nMake it smaller.`);
  }
  return { data: readPixels(bitmap), width, height, channels: 4 };
}

function readPixels(bitmap) {
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height).data;
}

// Some browsers alter the pixels that a page reads, so that it cannot recognize the device by them.
async function checkCanvas() {
  const drawn = new ImageData(64, 64);
  new Uint32Array(drawn.data.buffer).forEach((_, at, all) => (all[at] = 0xff000000 | Math.imul(at, 0x9e3779b1) >>> 8));
  const read = readPixels(await createImageBitmap(drawn));
  if (read.some((value, at) => value !== drawn.data[at])) {
    throw new Error("The browser alters the pixels of images (protection against fingerprinting): labels would be wrong.\nExpected: unchanged pixels.\nAllow this page to read canvas data, or use another browser.");
  }
}

// With a known size the runtime computes resized tables once, when the session is made.
async function sessionFor(ort, content, device, height, width) {
  const name = `${height}x${width}`;
  let session = sessions.get(name);
  if (!session) {
    self.postMessage({ text: `Preparing the network for ${width}×${height} pixels …` });
    for (const [old, unused] of [...sessions].slice(0, Math.max(0, sessions.size + 1 - MOST_SESSIONS))) {
      sessions.delete(old);
      await unused.release();
    }
    const freeDimensionOverrides = { batch: 1, height, width };
    session = await ort.InferenceSession.create(content, { executionProviders: [device], freeDimensionOverrides, extra: SLEEPING });
  }
  sessions.delete(name);
  sessions.set(name, session); // the last one used comes last
  return session;
}
