// Labels from the network itself, which runs in a worker of this browser.

import { encodeIndexedPng } from "./segmenting.js";

// The page's policy lets scripts start workers from this address only.
const WORKER = new URL("worker.js", import.meta.url).href;
const policy = globalThis.trustedTypes?.createPolicy("worker", { createScriptURL: () => WORKER });

const CPU = "wasm";
const GPU = "webgpu";

export const source = {
  model: null,
  worker: null,
  device: "",
  last: Promise.resolve(),

  async start() {
    return "Every pixel of an image gets a class. The network runs in this browser: images are sent nowhere.";
  },

  async models() {
    const answer = await fetch("network.json", { cache: "no-cache" });
    if (!answer.ok) throw new Error(`The server answered with status ${answer.status} for network.json.`);
    this.model = await answer.json();
    const { name, classes, limits, gpu_features: features } = this.model;
    const devices = [{ name: `${name}, on the CPU`, classes, device: CPU }];
    if (features && (await hasGpu(features))) devices.unshift({ name: `${name}, on the GPU`, classes, device: GPU });
    this.startWorker(devices[0].device);
    return { models: devices, limits };
  },

  startWorker(device) {
    this.worker?.terminate();
    this.device = device;
    const worker = new Worker(policy ? policy.createScriptURL("") : WORKER, { type: "module" });
    this.failed = new Promise((_, reject) => {
      worker.onerror = (event) => reject(new Error(`The worker failed (${event.message || "its script cannot be loaded"}).`));
    });
    this.failed.catch(() => {}); // told to who sends an image
    this.worker = worker;
    this.worker.postMessage({ device, model: this.model });
  },

  // One image at a time; those that nobody waits for any longer are left out.
  async segment(image, { device, classes }, signal, tell) {
    const turn = this.last.catch(() => {}).then(() => {
      signal.throwIfAborted();
      if (device !== this.device) this.startWorker(device);
      return this.answer(image instanceof Blob ? image : createImageBitmap(image), tell);
    });
    this.last = turn;
    const labels = await turn;
    return { ...labels, png: () => encodeIndexedPng(labels, classes) };
  },

  async answer(image, tell) {
    const [worker, content] = [this.worker, await image];
    const labeled = new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => {
        if (data.text) tell(data.text);
        else if (data.error) reject(new Error(this.device === GPU ? `${data.error}\nThe CPU can be chosen as the model.` : data.error));
        else resolve(data);
      };
      worker.postMessage({ image: content }, content instanceof ImageBitmap ? [content] : []);
    });
    return Promise.race([labeled, this.failed]);
  },

  async example() {
    return (await fetch("example.jpg")).blob();
  },
};

// Whether there is a GPU, not its emulation on the CPU.
async function hasGpu(features) {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter || adapter.info?.isFallbackAdapter) return false;
  return features.every((feature) => adapter.features.has(feature));
}
