// Labels from the server of `cgrseg web`.

const $ = (id) => document.getElementById(id);

export const source = {
  token: sessionStorage.getItem("token"),

  asking: null,

  async request(path, options = {}) {
    const [headers, token] = [{ ...options.headers }, this.token];
    if (token) headers.Authorization = `Bearer ${token}`;
    const answer = await fetch(path, { ...options, headers });
    if (answer.ok) return answer;
    if (answer.status === 401) {
      // Several requests may be refused at once: one dialog answers them all.
      if (token === this.token) {
        this.asking ??= askForToken(Boolean(token)).finally(() => (this.asking = null));
        this.token = await this.asking;
      }
      return this.request(path, options);
    }
    const text = await answer.text();
    let message = text;
    try {
      message = JSON.parse(text).error;
    } catch {
      // A proxy answered in its own words.
    }
    throw new Error(message || `The server answered with status ${answer.status}.`);
  },

  async start() {
    const token = new URLSearchParams(location.hash.slice(1)).get("token");
    if (token) {
      this.token = token;
      sessionStorage.setItem("token", token);
      history.replaceState(null, "", location.pathname);
    }
    $("curl").textContent = [
      `curl --data-binary @image.jpg '${location.origin}/v1/segment' -o labels.png`,
      `curl -F file=@image.jpg '${location.origin}/v1/segment?format=json'`,
    ].join("\n");
    $("program").hidden = false;
    return "Every pixel of an image gets a class. Images go to this server only, and are not stored.";
  },

  async example() {
    return (await this.request("example.jpg")).blob();
  },

  async models() {
    return (await this.request("v1/models")).json();
  },

  // The image as the server shows it, for formats and channels that the browser cannot show.
  async picture(file, model, bands, signal) {
    const query = new URLSearchParams({ model: model.name, format: "image", bands: bands.join(",") });
    const headers = { "Content-Type": "application/octet-stream" };
    const answer = await this.request(`v1/segment?${query}`, { method: "POST", body: file, headers, signal });
    return createImageBitmap(await answer.blob());
  },

  async segment(image, model, signal, tell) {
    const file = image instanceof Blob ? image
      : await new Promise((resolve) => image.toBlob(resolve, "image/jpeg", 0.95));
    const ticket = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16)).join("");
    const query = new URLSearchParams({ model: model.name, ticket, format: "png" });
    const timer = setInterval(async () => {
      try {
        const { place, length } = await (await fetch(`v1/queue?ticket=${ticket}`, {
          headers: this.token ? { Authorization: `Bearer ${this.token}` } : {},
        })).json();
        if (place) tell(`Waiting: place ${place} of ${length} in the queue.`);
      } catch {
        // The place is only a hint; the answer itself says what is wrong.
      }
    }, 1000);
    try {
      const headers = { "Content-Type": "application/octet-stream" };
      const answer = await this.request(`v1/segment?${query}`, { method: "POST", body: file, headers, signal });
      return await decodeIndexedPng(await answer.blob());
    } finally {
      clearInterval(timer);
    }
  },
};

function askForToken(wasWrong) {
  const dialog = $("token-dialog");
  $("token-problem").hidden = !wasWrong;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      if (!dialog.returnValue) return reject(new Error("The server answers requests with a token only.\nExpected: the token that it printed when it started.\nReload the page and give the token."));
      sessionStorage.setItem("token", $("token").value);
      resolve($("token").value);
    }, { once: true });
  });
}

// The class ids of an indexed 8-bit PNG. A canvas would give colors, which some browsers alter.
async function decodeIndexedPng(png) {
  const bytes = new Uint8Array(await png.arrayBuffer());
  const view = new DataView(bytes.buffer);
  const [width, height] = [view.getUint32(16), view.getUint32(20)];
  const parts = [];
  for (let at = 8; at < bytes.length; at += 12 + view.getUint32(at)) {
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (kind === "IDAT") parts.push(bytes.subarray(at + 8, at + 8 + view.getUint32(at)));
  }
  const inflated = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(inflated).arrayBuffer());
  const ids = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const filter = rows[y * (width + 1)];
    const here = y * width;
    ids.set(rows.subarray(y * (width + 1) + 1, (y + 1) * (width + 1)), here);
    if (filter === 0) continue;
    for (let x = 0; x < width; x++) {
      const left = x ? ids[here + x - 1] : 0;
      const up = y ? ids[here + x - width] : 0;
      const corner = x && y ? ids[here + x - width - 1] : 0;
      ids[here + x] += [0, left, up, (left + up) >> 1, paeth(left, up, corner)][filter];
    }
  }
  return { width, height, ids, png: async () => png };
}

function paeth(left, up, corner) {
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  if (a <= b && a <= c) return left;
  return b <= c ? up : corner;
}
