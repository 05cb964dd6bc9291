// Compress: the picture that every prefix of the file gives, beside the exact one.

import { Chart } from "./chart.js";
import { closeup } from "./closeup.js";
import { $, $$, bytes, decimal, fill, offerShell, shell, show, size } from "./dom.js";
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
      restore: ({ image }) => hand.put(image),
      body: (found) => {
        if (!hand.image) throw new Error("Choose a picture first");
        return { image: hand.image, ...found };
      },
      begin: () => shell(panel, null),
      done: (file) => this.#take(file),
    });
    offerShell(panel);
  }

  #take(file) {
    this.file = file;
    $(".empty", this.panel).hidden = true;
    $(".prefixes", this.panel).hidden = false;
    show($("[data-of=image]", this.panel), file.image);
    for (const name of ["whole", "file", "most"]) this.#tell(name, bytes(file.bytes));
    this.#tell("png", bytes(size(file.image)));
    $(".prefixes a", this.panel).href = file.file;
    const points = file.prefixes.map(({ psnr }, place) => [place, psnr]).filter(([, psnr]) => psnr !== null);
    const heights = points.map(([, psnr]) => psnr);
    const last = file.prefixes.length - 1;
    const view = [0, last, Math.min(...heights), Math.max(...heights)];
    this.chart = new Chart($(".curve", this.panel), { signal: points }, view, "PSNR of the prefixes");
    this.#tell("least", bytes(file.prefixes[0].bytes));
    this.range.max = last;
    this.range.value = Math.round(last / 3);
    shell(this.panel, file.again, { "image.png": file.image });
    this.#seek();
  }

  // The slider goes from one picture to the next: most bytes of a file are in its last few.
  #seek() {
    const place = Number(this.range.value);
    const prefix = this.file.prefixes[place];
    const psnr = prefix.psnr === null ? "exact" : `${decimal(prefix.psnr, 1)} dB`;
    fill(this.range);
    this.chart.marked(place);
    show($("[data-of=prefix]", this.panel), prefix.uri);
    this.#tell("bytes", bytes(prefix.bytes));
    this.#tell("size", bytes(prefix.bytes));
    this.#tell("psnr", psnr);
    this.range.setAttribute("aria-valuetext", `${bytes(prefix.bytes)}, ${psnr}`);
    Object.assign(this.panel.dataset, { prefix: place, bytes: prefix.bytes });
  }

  #tell(name, text) {
    $(`:not(img)[data-of=${name}]`, this.panel).textContent = text;
  }
}
