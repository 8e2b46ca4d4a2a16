// The class under the pointer, read from a hidden picture whose colours are class ids.
(() => {
  const canvases = new WeakMap();

  function ids(view) {
    const picture = view.querySelector(".cgrseg-ids");
    let kept = canvases.get(picture);
    if (!kept && picture.complete && picture.naturalWidth) {
      const canvas = document.createElement("canvas");
      canvas.width = picture.naturalWidth;
      canvas.height = picture.naturalHeight;
      kept = canvas.getContext("2d", { willReadFrequently: true });
      kept.drawImage(picture, 0, 0);
      canvases.set(picture, kept);
    }
    return kept;
  }

  document.addEventListener("pointermove", (event) => {
    for (const tip of document.querySelectorAll(".cgrseg-tip.shown")) tip.classList.remove("shown");
    const stage = event.target.closest && event.target.closest(".cgrseg-stage");
    if (!stage) return;
    const view = stage.closest(".cgrseg-view");
    const context = ids(view);
    if (!context) return;
    const box = stage.getBoundingClientRect();
    const { width, height } = context.canvas;
    const x = Math.min(width - 1, Math.floor(((event.clientX - box.left) / box.width) * width));
    const y = Math.min(height - 1, Math.floor(((event.clientY - box.top) / box.height) * height));
    const [red, green] = context.getImageData(Math.max(0, x), Math.max(0, y), 1, 1).data;
    const tip = stage.querySelector(".cgrseg-tip");
    tip.textContent = JSON.parse(view.dataset.classes)[red + 256 * green] ?? "";
    tip.style.left = `${event.clientX - box.left}px`;
    tip.style.top = `${event.clientY - box.top}px`;
    tip.classList.toggle("left", event.clientX - box.left > box.width / 2);
    tip.classList.add("shown");
  });
})();
