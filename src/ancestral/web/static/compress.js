// Compress: the picture that every prefix of the file gives, beside the exact one.

import { Chart } from "./chart.js";
import { closeup } from "./closeup.js";
import { $, $$, bytes, decimal, fill, keepCopies, shell, show, size } from "./dom.js";
import { Task } from "./task.js";
import { Well } from "./well.js";

export class Compress {
  constructor(panel, model, hand) {
    this.panel = panel;
    this.range = $(".stage input", panel);
    new Well($(".well", panel), hand, model);
    this.range.addEventListener("input", () => this.#seek());
    for (const tile of $$(".tile", panel)) tile.addEventListener("click", () => closeup($("img", tile).getAttribute("src")));
    new Task(panel, "compress", {
      body: (found) => {
        if (!hand.image) throw new Error("Choose a picture first");
        return { image: hand.image, ...found };
      },
      begin: () => shell(panel, null),
      done: (file) => this.#take(file),
    });
    keepCopies(panel, { command: () => $("code", panel).textContent });
  }

  #take(file) {
    this.file = file;
    $(".empty", this.panel).hidden = true;
    $(".prefixes", this.panel).hidden = false;
    show($("[data-of=image]", this.panel), file.image);
    this.#tell("whole", bytes(file.bytes));
    this.#tell("file", bytes(file.bytes));
    this.#tell("png", bytes(size(file.image)));
    $(".prefixes a", this.panel).href = file.file;
    const finite = file.prefixes.filter(({ psnr }) => Number.isFinite(psnr));
    const heights = finite.map(({ psnr }) => psnr);
    const view = [0, file.bytes, Math.min(...heights), Math.max(...heights)];
    const points = finite.map((prefix) => [prefix.bytes, prefix.psnr]);
    this.chart = new Chart($(".curve", this.panel), { signal: points }, view, "PSNR over the bytes of the prefix");
    this.range.max = file.bytes;
    this.range.value = Math.round(file.bytes / 4);
    shell(this.panel, file.again);
    this.#seek();
  }

  // The slider counts bytes; what is shown is the longest prefix of the list that they hold.
  #seek() {
    const held = this.file.prefixes.filter((prefix) => prefix.bytes <= Number(this.range.value));
    const place = Math.max(0, held.length - 1);
    const prefix = this.file.prefixes[place];
    fill(this.range);
    this.chart.marked(Number(this.range.value));
    show($("[data-of=prefix]", this.panel), prefix.uri);
    this.#tell("bytes", bytes(prefix.bytes));
    this.#tell("size", bytes(prefix.bytes));
    this.#tell("psnr", Number.isFinite(prefix.psnr) ? `${decimal(prefix.psnr, 1)} dB` : "exact");
    Object.assign(this.panel.dataset, { prefix: place, bytes: prefix.bytes });
  }

  #tell(name, text) {
    $(`:not(img)[data-of=${name}]`, this.panel).textContent = text;
  }
}
